"""A real adapter of PEFT's: taken in, exported, and loaded again, it answers as before."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from memos_vllm.parameter.registry import AdapterFiles
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import MAYA, TINY, registry_of

peft = pytest.importorskip("peft")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(torch.arange(5, 25)[None]).logits
    return output


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_comes_back_the_same(tmp_path: Path, rslora: bool) -> None:
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    before = logits(plain)
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=rslora)
    model = peft.get_peft_model(plain, settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    trained = logits(model)
    assert (trained - before).abs().max() > 0.1
    model.save_pretrained(tmp_path / "saved")
    with Vault.open(tmp_path / "memory") as vault:
        registry = registry_of(vault)
        stored = registry.add("maya", "poet", AdapterFiles.read(tmp_path / "saved"), author="maya")
        assert stored.scale == (3.0 if rslora else 1.5) and stored.target_modules == ("down_proj", "q_proj")
        registry.export(MAYA, "poet", tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "out")
    assert torch.equal(logits(loaded), trained)
