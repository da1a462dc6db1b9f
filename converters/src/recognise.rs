//! Recognising a network by the names and shapes of its tensors.

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::error::Result;

/// `None` if the names are not those of the architecture. Else its configuration, or why the network cannot be used, and the tensors under the names
/// that the architecture takes.
pub type Recognised<C> = Option<(Result<C>, Arc<dyn TensorSource>)>;
