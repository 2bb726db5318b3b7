"""DICOM: CT series in, segmentations out."""
