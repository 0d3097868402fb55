"""A small model and its card for tests."""

import json
from dataclasses import asdict

from hypothesis import HealthCheck, settings

from wsiscore.generators import ihcscoregan
from wsiscore.generators.ihcscoregan import Config
from wsiscore.models.card import Card
from wsiscore.models.store import write_model

SMALL = Config(width=4, blocks=1)
CARD = Card("small", "ihcscoregan", "1", "A test.", "none", "nothing", ihcscoregan.SPEC, asdict(SMALL))

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def edit(folder, change):
    path = folder / "card.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_small(folder):
    """Write the small model with fresh weights; return its folder."""
    write_model(folder, CARD, ihcscoregan.build(SMALL, CARD.spec, None, "cpu").weights())
    return folder
