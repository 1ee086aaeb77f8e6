import copy
import logging
import os
from pathlib import Path

import numpy as np
import pykeen.datasets
import pykeen.models
import pytest
import torch
from conve_examples import native_checkpoint, random_triples, trained_conve

from conve_tracin.checkpoint.conversion import convert_pytorch_to_pykeen_state_dict, to_pykeen_checkpoint
from conve_tracin.checkpoint.native import save_checkpoint
from conve_tracin.checkpoint.pykeen import (
    as_native_conve,
    build_pykeen_conve,
    find_training_mappings,
    load_pykeen_model,
    relation_rows,
    score_pykeen,
)
from conve_tracin.data.datasets import load_dataset_triples
from conve_tracin.data.queries import Queries, examples_of
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.ranking.ranks import rank_triples, ranking_metrics


@pytest.mark.parametrize("name", ["UMLS", "umls", "Nations"])
def test_dataset_triples_are_those_of_the_files_in_the_package(name):
    triples = load_dataset_triples(name)
    folder = Path(pykeen.datasets.__file__).parent / name.lower()
    assert list(triples) == ["train", "valid", "test"]
    for part, rows in triples.items():
        lines = (folder / f"{part}.txt").read_text(encoding="utf-8").splitlines()
        assert sorted(rows) == sorted(tuple(line.split("\t")) for line in lines)
        assert all(type(label) is str for label in rows[0])


def test_unknown_dataset_lists_close_names():
    with pytest.raises(InputError, match=r"'Natoins'.*did you mean Nations\?"):
        load_dataset_triples("Natoins")
    with pytest.raises(InputError, match=r"it has AristoV4.*UMLS"):
        load_dataset_triples("qqqqqq")


def test_dataset_that_cannot_be_loaded_is_an_input_error(monkeypatch):
    def broken(self, **kwargs):
        raise OSError("host not reachable")

    monkeypatch.setattr(pykeen.datasets.UMLS, "__init__", broken)
    level = logging.getLogger("pykeen").level
    with pytest.raises(InputError, match=r"UMLS.*host not reachable"):
        load_dataset_triples("UMLS")
    assert logging.getLogger("pykeen").level == level


RELATIONS = 6
ENTITIES = 20


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """What PyKEEN writes for a ConvE trained with inverse triples, in each of its formats."""
    from pykeen.checkpoints import save_model
    from pykeen.pipeline import pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    training, testing = random_factories(create_inverse_triples=True)
    result = pipeline(
        training=training,
        testing=testing,
        model="ConvE",
        model_kwargs={
            "embedding_dim": 20, "embedding_height": 4, "embedding_width": 5, "output_channels": 3, "kernel_height": 2,
        },
        training_loop="lcwa",
        training_kwargs={
            "num_epochs": 2, "use_tqdm": False, "batch_size": 16,
            "checkpoint_directory": folder, "checkpoint_name": "training_loop.pt", "checkpoint_frequency": 0,
        },
        optimizer_kwargs={"lr": 0.0125},
        evaluation_kwargs={"use_tqdm": False},
        random_seed=1,
        device="cpu",
    )  # fmt: skip
    result.save_to_directory(folder)
    torch.save(result.model.state_dict(), folder / "state_dict.pt")
    result.model.save_state(folder / "save_state.pt")
    save_model(result.model, folder / "save_model.pt")
    return folder, result.model.eval()


def random_factories(*, create_inverse_triples=False):
    from pykeen.triples import TriplesFactory

    generator = np.random.default_rng(0)
    every_entity = [(f"e{number:02}", f"r{number % RELATIONS}", "e00") for number in range(ENTITIES)]
    ids = generator.integers([ENTITIES, RELATIONS, ENTITIES], size=(120, 3))
    rows = every_entity + [(f"e{head:02}", f"r{relation}", f"e{tail:02}") for head, relation, tail in ids]
    factory = TriplesFactory.from_labeled_triples(np.array(rows), create_inverse_triples=create_inverse_triples)
    return factory.split(0.9, random_state=0)


def user_triples(count=200):
    return random_triples(count, num_entities=ENTITIES, num_relations=RELATIONS)


PYKEEN_FILES = {
    "state_dict.pt": "pykeen-state-dict",
    "save_state.pt": "pykeen-state-dict",
    "save_model.pt": "pykeen-state-dict",
    "training_loop.pt": "pykeen-training-loop",
    "trained_model.pkl": "pykeen-pickle",
}


@pytest.mark.parametrize("name", PYKEEN_FILES)
def test_each_file_that_pykeen_writes_gives_the_model_back(pipeline, name):
    folder, model = pipeline
    loaded = load_pykeen_model(folder / name, trust_pickle=name.endswith(".pkl"), num_relations=RELATIONS)
    assert loaded.source_format == PYKEEN_FILES[name]
    assert loaded.inverse_triples
    assert loaded.model.use_inverse_triples
    assert not loaded.model.training
    triples = user_triples()
    assert torch.equal(score_pykeen(loaded.model, triples), model.predict_hrt(triples)[:, 0])


def test_training_loop_checkpoint_tells_more_than_the_weights(pipeline):
    folder, _ = pipeline
    loaded = load_pykeen_model(folder / "training_loop.pt")
    assert loaded.inverse_triples
    assert loaded.learning_rate == 0.0125
    assert loaded.epoch == 2
    entities, relations = find_training_mappings(folder / "training_loop.pt")
    assert loaded.mapping_digest == {
        "entity": read_vocabulary(entities, "entity").digest(),
        "relation": read_vocabulary(relations, "relation").digest(),
    }


def test_mappings_are_found_beside_the_pipelines_files_only(pipeline, tmp_path):
    folder, _ = pipeline
    assert find_training_mappings(folder) == find_training_mappings(folder / "trained_model.pkl")
    assert find_training_mappings(folder)[0] == folder / "training_triples" / "entity_to_id.tsv.gz"
    assert find_training_mappings(tmp_path) is None
    assert find_training_mappings(tmp_path / "model.pt") is None


def test_number_of_relations_must_fit(pipeline):
    folder, _ = pipeline
    for name in PYKEEN_FILES:
        with pytest.raises(InputError, match=rf"{name}: was trained with \d+ relations, but 5 are given"):
            load_pykeen_model(folder / name, trust_pickle=True, num_relations=5)
    with pytest.raises(InputError, match="was trained with 6 relations, but 12 are given"):
        load_pykeen_model(folder / "training_loop.pt", num_relations=12)
    assert not load_pykeen_model(folder / "state_dict.pt", num_relations=12).inverse_triples


@pytest.mark.parametrize("model_class", ["ConvE", "DistMult", "RotatE"])
@pytest.mark.parametrize("inverse_triples", [False, True])
def test_original_ids_mean_the_relation_that_pykeen_trains_them_as(model_class, inverse_triples):
    training, _ = random_factories(create_inverse_triples=inverse_triples)
    sizes = {"embedding_dim": 20, "embedding_height": 4, "embedding_width": 5} if model_class == "ConvE" else {}
    model = pykeen.models.model_resolver.make(model_class, triples_factory=training, random_seed=0, **sizes).eval()
    triples = training.mapped_triples
    scores = score_pykeen(model, triples)
    assert scores.shape == (len(triples),)
    # PyKEEN's prediction translates ids, its score_hrt does not.
    torch.testing.assert_close(scores, model.predict_hrt(triples)[:, 0])
    assert torch.allclose(scores, model.score_hrt(triples)[:, 0]) is not inverse_triples
    # What its training loop feeds the model: each triple in its own row, then its inverse in the next.
    trained_on = training._add_inverse_triples_if_necessary(triples)
    assert torch.equal(trained_on[: len(triples)], relation_rows(model, triples))
    if inverse_triples:
        inverse = torch.stack([triples[:, 2], 2 * triples[:, 1] + 1, triples[:, 0]], dim=1)
        assert torch.equal(trained_on[len(triples) :], inverse)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_converted_checkpoint_scores_as_the_native_model_and_needs_no_more_flags(tmp_path):
    model, optimizer = trained_conve("tall-kernel", num_relations=8)
    checkpoint = native_checkpoint(model, optimizer, training_config={"inverse_triples": True})
    save_checkpoint(tmp_path / "converted.pt", to_pykeen_checkpoint(checkpoint))
    loaded = load_pykeen_model(tmp_path / "converted.pt", num_relations=4)
    assert loaded.inverse_triples
    assert (loaded.learning_rate, loaded.epoch, loaded.source_format) == (0.015, 4, "converted")
    assert loaded.mapping_digest == checkpoint["mapping_digest"]
    triples = random_triples(1000, num_relations=4)
    expected = model.score(triples[:, 0], 2 * triples[:, 1], triples[:, 2])
    torch.testing.assert_close(score_pykeen(loaded.model, triples), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("entity_bias", [False, True])
def test_bias_that_a_native_model_lacks_is_no_parameter_of_its_conversion(tmp_path, entity_bias):
    checkpoint = native_checkpoint(*trained_conve(entity_bias=entity_bias))
    save_checkpoint(tmp_path / "converted.pt", to_pykeen_checkpoint(checkpoint))
    model = load_pykeen_model(tmp_path / "converted.pt").model
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ([] if entity_bias else ["entity_representations.1._embeddings.weight"])
    assert (as_native_conve(model).entity_bias is not None) == entity_bias


def test_native_twin_of_a_pykeen_conve(pipeline):
    _, model = pipeline
    native = as_native_conve(model)
    rows = relation_rows(model, user_triples())
    torch.testing.assert_close(native.score(*rows.T), model.score_hrt(rows)[:, 0], atol=1e-6, rtol=0)
    native.entity_embeddings.weight.data.zero_()
    assert model.entity_representations[0]._embeddings.weight.any()
    precise = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in precise.parameters():
            parameter *= 1 + 1e-9 * torch.rand_like(parameter)  # what float32 cannot hold
    scores = precise.score_hrt(rows)[:, 0]
    torch.testing.assert_close(as_native_conve(precise).score(*rows.T), scores, atol=0, rtol=1e-13)


@pytest.mark.parametrize(
    ("model_class", "sizes"),
    [
        ("DistMult", {}),
        ("ConvE", {"apply_batch_normalization": False}),
        # 200 / (5 × 20): two input channels.
        ("ConvE", {"embedding_height": 5, "embedding_width": 20}),
    ],
)
def test_other_models_have_no_native_twin_and_are_read_from_their_pickle_only(tmp_path, model_class, sizes):
    training, _ = random_factories()
    model = pykeen.models.model_resolver.make(model_class, triples_factory=training, random_seed=0, **sizes).eval()
    assert as_native_conve(model) is None
    torch.save(model.state_dict(), tmp_path / "state_dict.pt")
    with pytest.raises(InputError, match=r"state_dict\.pt: .*(another model than ConvE|not those of|input channels)"):
        load_pykeen_model(tmp_path / "state_dict.pt")
    torch.save(model, tmp_path / "trained_model.pkl")
    loaded = load_pykeen_model(tmp_path / "trained_model.pkl", trust_pickle=True)
    triples = user_triples()
    torch.testing.assert_close(score_pykeen(loaded.model, triples), model.score_hrt(triples)[:, 0])


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickle_is_refused_without_trust_and_nothing_runs(pipeline, tmp_path):
    folder, _ = pipeline
    with pytest.raises(InputError, match=r"trained_model\.pkl: .*could run code.*--trust-pickle"):
        load_pykeen_model(folder / "trained_model.pkl")
    path, marker = tmp_path / "trained_model.pkl", tmp_path / "ran"
    torch.save({"model_state_dict": Payload(marker)}, path)
    with pytest.raises(InputError, match="could run code"):
        load_pykeen_model(path)
    assert not marker.exists()


def test_trusted_files_that_hold_no_model_are_an_input_error(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pkl")
    with pytest.raises(InputError, match="holds a Linear, not a PyKEEN model"):
        load_pykeen_model(tmp_path / "linear.pkl", trust_pickle=True)
    (tmp_path / "text.pkl").write_text("no pickle")
    with pytest.raises(InputError, match=r"text\.pkl: cannot be unpickled"):
        load_pykeen_model(tmp_path / "text.pkl", trust_pickle=True)
    with pytest.raises(InputError, match=r"absent\.pkl: no such file"):
        load_pykeen_model(tmp_path / "absent.pkl", trust_pickle=True)


def test_model_that_diverged_is_an_input_error(tmp_path):
    training, _ = random_factories()
    model = pykeen.models.DistMult(triples_factory=training, random_seed=0)
    torch.nn.init.constant_(model.relation_representations[0]._embeddings.weight, torch.inf)
    torch.save(model, tmp_path / "trained_model.pkl")
    with pytest.raises(InputError, match=r"relation_representations.*NaN or infinite"):
        load_pykeen_model(tmp_path / "trained_model.pkl", trust_pickle=True)


def test_built_model_has_the_asked_sizes_and_leaves_the_random_state():
    config = trained_conve(steps=0)[0].config.as_dict()
    state = torch.get_rng_state()
    model = build_pykeen_conve({**config, "input_dropout": 0.125}, inverse_triples=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.num_entities, model.num_relations, model.num_real_relations) == (30, 8, 4)
    assert model.interaction.hr2d[1].p == 0.125
    with pytest.raises(InputError, match="relation table of 7 rows cannot hold"):
        build_pykeen_conve({**config, "num_relations": 7}, inverse_triples=True)
    with pytest.raises(InputError, match="does not fit"):
        build_pykeen_conve({**config, "kernel_width": 9})


@pytest.mark.parametrize("inverse_triples", [False, True])
def test_pykeens_evaluator_gives_our_metrics(inverse_triples):
    from pykeen.evaluation import RankBasedEvaluator

    training, testing = random_factories(create_inverse_triples=inverse_triples)
    rows = RELATIONS * (2 if inverse_triples else 1)
    native, _ = trained_conve(num_entities=ENTITIES, num_relations=rows)
    model = build_pykeen_conve(native.config.as_dict(), inverse_triples=inverse_triples)
    model.load_state_dict(to_pykeen_state(native), strict=True)
    theirs = RankBasedEvaluator(filtered=True).evaluate(
        model, testing.mapped_triples, additional_filter_triples=[training.mapped_triples], use_tqdm=False, batch_size=8
    )
    known = np.concatenate([training.mapped_triples.numpy(), testing.mapped_triples.numpy()])
    ranks = rank_triples(
        native,
        examples_of(testing.mapped_triples.numpy(), inverse_triples=inverse_triples),
        Queries.distinct(examples_of(known, inverse_triples=inverse_triples)),
        num_relations=rows,
    )
    ours = ranking_metrics(ranks)
    side = "both" if inverse_triples else "tail"
    assert ours["mean_reciprocal_rank"] == pytest.approx(
        theirs.get_metric(f"{side}.realistic.inverse_harmonic_mean_rank"), abs=1e-4
    )
    assert ours["mean_rank"] == pytest.approx(theirs.get_metric(f"{side}.realistic.arithmetic_mean_rank"), abs=1e-4)
    for k in (1, 3, 5, 10):
        assert ours[f"hits@{k}"] == pytest.approx(theirs.get_metric(f"{side}.realistic.hits_at_{k}"), abs=1e-4)


def to_pykeen_state(model):
    return convert_pytorch_to_pykeen_state_dict({"model_state_dict": model.state_dict()})
