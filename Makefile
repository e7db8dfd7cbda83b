# make demo: the main job on a sample clip; make test: everything that is tested; both do all set-up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

.PHONY: demo test lint bench train train-more lite curve precisions clean

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)
	$(BIN)/python -m bench.demo --output $(OUT)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench

# Needs the labelled data in ../shared/data and hours of two cores, or minutes of a GPU; `--resume runs/joint/last.pt` goes on.
TRAIN := $(BIN)/python -m train
SEEN := --data ../shared/data --pseudo train/labels/people --extra runs/frames/broadcast runs/frames/rendered
FRAMES := $(SEEN) --extra-val runs/frames/broadcast_val --processes 2
SHARES := --shares detection=0.40,pitch=0.22,pitch_broadcast=0.20,broadcast=0.12,rendered=0.06
MORE := --crop-share 0.25 --seed 9 $(SHARES)
WEIGHTS := src/firsttouch/weights/firsttouch.onnx
INT8 := $(WEIGHTS:.onnx=.int8.onnx)

train: runs/frames
	$(TRAIN) fit $(FRAMES) --out runs/joint --crop-share 0.4 --minutes 100 \
		--shares detection=0.32,pitch=0.18,pitch_broadcast=0.16,broadcast=0.12,rendered=0.22
	$(TRAIN) export runs/joint/last.pt
	$(MAKE) precisions

# Trains on from the weights that ship.
train-more: runs/frames
	$(TRAIN) fit $(FRAMES) $(MORE) --out runs/more --start $(WEIGHTS) --rate 0.0015 --minutes 100
	$(TRAIN) export runs/more/last.pt
	$(MAKE) precisions

# The smaller network: channels of the one that ships taken away in two steps, tuned on labels and on what the larger one says;
# then tuned once more for long, and the mean of before and after.
LITE := $(WEIGHTS:.onnx=-lite.onnx)
TUNE := $(FRAMES) $(MORE) --teacher $(WEIGHTS) --rate 0.002

lite: runs/frames
	$(TRAIN) prune $(WEIGHTS) --time 0.775 --out runs/pruned.pt
	$(TRAIN) fit $(TUNE) --out runs/lite --start runs/pruned.pt --minutes 62
	$(TRAIN) prune runs/lite/last.pt --time 0.88 --out runs/pruned.pt
	$(TRAIN) fit $(TUNE) --out runs/lite --start runs/pruned.pt --seed 10 --minutes 36
	$(TRAIN) fit $(TUNE) --out runs/lite-on --start runs/lite/last.pt --seed 12 --minutes 85
	$(TRAIN) average runs/lite/last.pt runs/lite-on/last.pt $(SEEN) $(SHARES) --out runs/lite.pt
	$(TRAIN) export runs/lite.pt --out $(LITE)
	$(TRAIN) quantise $(LITE) --out $(LITE:.onnx=.int8.onnx)
	$(TRAIN) roles $(LITE:.onnx=.int8.onnx) --also $(LITE) --pseudo train/labels/people --extra runs/frames/broadcast

# Time against accuracy: the same short tuning for several shares of the convolutions' time.
CURVE := 0.9 0.775 0.65

curve: runs/frames
	for share in $(CURVE); do \
		to=runs/curve/$$share && mkdir -p runs/curve && $(TRAIN) prune $(WEIGHTS) --time $$share --out $$to.pt && \
		$(TRAIN) fit $(TUNE) --out $$to --start $$to.pt --steps 1500 && \
		$(TRAIN) export $$to/last.pt --out $$to.onnx && $(TRAIN) quantise $$to.onnx --out $$to.int8.onnx && \
		$(TRAIN) roles $$to.int8.onnx --also $$to.onnx --pseudo train/labels/people --extra runs/frames/broadcast || exit 1; \
	done

# The other precisions of the float32 network, and who is who, fitted to what the int8 one sees.
precisions:
	$(TRAIN) quantise $(WEIGHTS)
	$(TRAIN) half $(WEIGHTS)
	$(TRAIN) roles $(INT8) --also $(WEIGHTS) $(WEIGHTS:.onnx=.fp16.onnx) --pseudo train/labels/people --extra runs/frames/broadcast

runs/frames: $(READY)
	$(BIN)/python -m pip install --quiet torch==2.13.0 torch-pruning
	$(TRAIN) collect --rendered 300

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache
