//! Recognition of networks by names and shapes of tensors.

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::error::Result;

/// Result of recognising an architecture. `None` if the tensor names do not match. Otherwise the configuration, or the
/// reason why the network cannot be used, and the tensors under the names that the architecture requests.
pub type Recognised<C> = Option<(Result<C>, Arc<dyn TensorSource>)>;
