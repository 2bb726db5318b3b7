"""Read CT series, and write segmentations as DICOM SEG."""
