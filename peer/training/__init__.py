"""A member's local work: the model, its data, its steps, what it hands over."""

import os

# Since 5.25 transformers fetches compiled kernels from its hub and runs them, unless told not to: native code that no
# run has named, and sums that not every member has. It is read whenever a model is loaded.
os.environ["USE_HUB_KERNELS"] = "NO"
