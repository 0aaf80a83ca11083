"""The mask is deferred: cut points for S²-Attn, queries by keys for others, each made once and only if asked for."""

import pytest
import torch
from accelerate.utils import send_to_device
from tests.models.small_models import deferred_mask

from longlora.models import deferred_mask as deferred_mask_module
from longlora.models.grouping import Grouping


def test_a_layer_that_gets_no_positions_trains_whole_rows(model):
    cuts = deferred_mask(model).cuts(6, grouping=Grouping(group_size=4), position_ids=None, cu_seqlens=None)
    assert cuts.unshifted == (4, 2)


def test_documents_are_known_from_the_mask_alone(model):
    """As where an architecture does not hand positions to its layers."""
    mask = deferred_mask(model, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    cuts = mask.cuts(6, grouping=Grouping(group_size=None), position_ids=None, cu_seqlens=None)
    assert cuts.unshifted == (3, 3)


def test_positions_within_padding_make_no_documents(model):
    mask = deferred_mask(model, attention_mask=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    cuts = mask.cuts(
        6, grouping=Grouping(group_size=100), position_ids=torch.tensor([[1, 1, 1, 0, 1, 2]]), cu_seqlens=None
    )
    assert cuts.unshifted == (3, 3)


def test_the_mask_is_made_once_for_all_layers(model, batch, monkeypatch):
    made = []

    def counting(*arguments, **named):
        made.append(arguments)
        return cut_points(*arguments, **named)

    cut_points = deferred_mask_module.cut_points
    monkeypatch.setattr(deferred_mask_module, "cut_points", counting)
    model.train()(**batch)
    assert len(made) == 1 < model.config.num_hidden_layers


def test_training_makes_no_mask_of_queries_by_keys(model, batch, monkeypatch):
    def refuse(**arguments):
        raise AssertionError("made a dense mask")

    monkeypatch.setattr(deferred_mask_module, "sdpa_mask", refuse)
    model.train()(**batch)
    with pytest.raises(AssertionError, match="made a dense mask"):
        model.eval()(**batch)


def test_the_mask_survives_being_sent_to_another_device(model, seed):
    """accelerate sends a layer's arguments to its device when a model is spread over several."""
    mask = deferred_mask(model, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    sent = send_to_device({"attention_mask": mask}, "meta")["attention_mask"]
    assert sent.cuts(
        6, grouping=Grouping(group_size=None), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), cu_seqlens=None
    ).unshifted == (
        3,
        3,
    )
    assert torch.equal(sent.dense, mask.dense)
