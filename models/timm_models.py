"""The old place of models.library.timm_models, for scripts that import it from here."""

from models.library.timm_models import load_timm as load_timm
