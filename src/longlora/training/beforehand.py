"""What is wrong with a run and can be seen at once, before torch is loaded."""

from longlora.config import Recipe
from longlora.models.checkpoint import model_source
from longlora.support.locate import locate
from longlora.training.directory import check_output


def check_beforehand(recipe: Recipe, *, merge_follows: bool) -> None:
    """Look at the places that a recipe names: the output directory, the model, the data.

    `merge_follows`: whether a finished run also has a merged model.

    Raises:
        ConfigError: the output directory cannot be used.
        CheckpointError: there is no model where the recipe says.
        DataError: there are no texts where it says.
    """
    check_output(recipe, merge_follows=merge_follows)
    model_source(recipe.model_name_or_path)
    data = recipe.data
    for source in (data.source, data.validation_source):
        for name in [source] if isinstance(source, str) else source or ():
            locate(name)
