"""What stands under a field, as the source has it."""

from pydantic import Field, create_model

from metier.core.described import descriptions
from metier.core.stage import Config


class Base(Config):
    plain: int = 1
    """A plain one,
    over two lines."""
    again: int = 2
    """Told again below."""


class Below(Base):
    again: int = 3
    """Another meaning."""
    bare: int = 4
    spoken: int = Field(5, description="Said in the call.")


def test_strings_under_fields_are_read_inherited_and_overridden():
    assert descriptions(Base) == {"plain": "A plain one,\nover two lines.", "again": "Told again below."}
    assert descriptions(Below) == {
        "plain": "A plain one,\nover two lines.",
        "again": "Another meaning.",
        "spoken": "Said in the call.",
    }


def test_a_class_in_a_function_is_read_too():
    class Inner(Config):
        x: int = 0
        """Where it lies."""

    assert descriptions(Inner) == {"x": "Where it lies."}


def test_a_class_without_source_has_none():
    assert descriptions(create_model("Made", __base__=Config, x=(int, 0))) == {}
