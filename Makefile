# Everything runs in a virtual environment of its own; nothing is installed outside this directory.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO ?= demo

.PHONY: demo test test-all lint format clean

demo: $(VENV)/installed ## train on UMLS and explain one prediction (about a minute on two cores)
	$(RUN) prepare_data.py --dataset umls --output-dir $(DEMO)/data
	$(RUN) train_pytorch.py --train $(DEMO)/data/train.txt --valid $(DEMO)/data/valid.txt \
	    --test $(DEMO)/data/test.txt --entity-to-id $(DEMO)/data/entity_to_id.tsv \
	    --relation-to-id $(DEMO)/data/relation_to_id.tsv --output-dir $(DEMO)/model \
	    --training-approach kvsall --inverse-triples --loss ce --query-weights tails --num-epochs 90 --batch-size 128 \
	    --learning-rate 0.003 --lr-decay 0.985 --eval-frequency 5 --checkpoint-frequency 30
	$(RUN) tracin_pytorch.py --model-path $(DEMO)/model/best_model.pt --train $(DEMO)/data/train.txt \
	    --entity-to-id $(DEMO)/data/entity_to_id.tsv --relation-to-id $(DEMO)/data/relation_to_id.tsv \
	    --node-name-dict $(DEMO)/data/node_name_dict.txt \
	    --test-triple pharmacologic_substance treats neoplastic_process --method gauss-newton \
	    --output $(DEMO)/influences.json --report $(DEMO)/report.html

test: $(VENV)/installed-test ## the test suite without the slow tests, on all cores
	$(RUN) -m pytest --numprocesses logical --dist worksteal

test-all: $(VENV)/installed-test ## every test: whole pipelines and all commands of the documents, too
	$(RUN) -m pytest -m "slow or not slow"

lint: $(VENV)/installed-test ## style and mistakes
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/installed-test
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(VENV)/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.txt requirements-pipeline.txt
	$(RUN) -m pip install --quiet --requirement requirements-test.txt --requirement requirements-pipeline.txt \
	    --constraint constraints.txt
	touch $@

clean: ## remove the environment and the demo's files
	rm -rf $(VENV) $(DEMO)
