"""All settings, as dataclasses whose fields say everything about a setting once.

A field made by `setting` is a flag of the command line with its help and check, a key of config.yaml, the check of
what Python gives, the line that says when the setting has no effect, and the rule for resuming. Neither torch nor
pykeen is imported here.
"""

from conve_tracin.settings.fields import (
    FREE,
    LARGEST_INT,
    NEW_RUN,
    REFUSED,
    SAID,
    Change,
    Condition,
    Number,
    Setting,
    about,
    changes_on_resuming,
    file_to_write,
    flag_of,
    fraction,
    hops,
    is_switch,
    may_change_in_a_run,
    needs,
    never,
    non_negative_float,
    non_negative_int,
    pick,
    positive_float,
    positive_int,
    reason_without_effect,
    require_valid,
    setting,
    settings_without_effect,
    stored_setting,
    stored_settings,
    unless,
    unless_given,
    with_flags,
)
from conve_tracin.settings.influence import (
    ACCEPTED,
    COMPUTED_ONCE,
    DEFAULT_BATCH_SIZE,
    DEFAULT_LEARNING_RATE,
    GAUSS_NEWTON,
    HEAD,
    METHODS,
    MODES,
    SHARED_GROUPS,
    SIDES,
    SOFTMAX_DAMPING,
    TAIL,
    TRACIN,
    AcceptedOptions,
    NativeEngine,
    TracInOptions,
    missing_for_mode,
    native_settings,
)
from conve_tracin.settings.prediction import PredictionOptions
from conve_tracin.settings.preparation import SPLITTING, STYLES, PrepareSettings
from conve_tracin.settings.training import TRAINING_SETTINGS, ConvEConfig, TrainingConfig, TrainingMachine
from conve_tracin.settings.verification import VerificationOptions
