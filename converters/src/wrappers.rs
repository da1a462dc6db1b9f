//! Removes prefixes that wrappers add to tensor names: `torch.compile`, `DataParallel`, `AveragedModel`, Lightning
//! modules.

use std::collections::BTreeSet;
use std::sync::Arc;

use d2o_checkpoint::error::abbreviate;
use d2o_checkpoint::{MAX_NETWORKS, Renamed, TensorSource};

/// Prefixes of wrappers, which are removed at every level.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// The tensor of `AveragedModel` outside the prefix `module.`.
const COUNTER: &str = "n_averaged";
/// Maximum number of name parts before the names of a network.
const MAX_DEPTH: usize = 3;

/// Identifies the network with this name and these tensors.
type Recognise<'a, T> = &'a dyn Fn(String, Arc<dyn TensorSource>) -> T;

/// The networks of `tensors`, without the prefixes of wrappers. If `tensors` are not a network as a whole, they are
/// grouped by the first part of their names. If a group is or contains a network, the groups are returned.
pub(crate) fn unwrap<T>(
    name: String,
    tensors: Arc<dyn TensorSource>,
    recognise: Recognise<'_, T>,
    is_network: &dyn Fn(&T) -> bool,
    notes: &mut Vec<String>,
) -> Vec<T> {
    let tensors = without_wrappers(tensors);
    let whole = recognise(name.clone(), Arc::clone(&tensors));
    if is_network(&whole) {
        return vec![whole];
    }
    match inner(&name, &tensors, recognise, is_network, notes, MAX_DEPTH) {
        Some(networks) => networks,
        None => vec![whole],
    }
}

/// The networks in the groups of `tensors` with the same first part of the name, searched recursively to this `depth`.
/// `None` if no group is or contains a network.
fn inner<T>(
    name: &str,
    tensors: &Arc<dyn TensorSource>,
    recognise: Recognise<'_, T>,
    is_network: &dyn Fn(&T) -> bool,
    notes: &mut Vec<String>,
    depth: usize,
) -> Option<Vec<T>> {
    let first = |name: String| name.split_once('.').map_or(String::new(), |(first, _)| first.to_owned());
    let groups: BTreeSet<String> = tensors.names().into_iter().map(first).collect();
    if depth == 0 || groups.len() > MAX_NETWORKS {
        return None;
    }
    let (only, mut found, mut recognised) = (groups.len() == 1, Vec::new(), false);
    for group in groups.iter().filter(|g| !g.is_empty()) {
        let prefix = format!("{group}.");
        let below = Renamed::new(Arc::clone(tensors), |n| n.strip_prefix(&prefix).map(str::to_owned));
        let below = without_wrappers(Arc::new(below));
        let name = match (only, name) {
            (true, _) => name.to_owned(),
            (false, "") => group.to_owned(),
            (false, _) => format!("{name}.{group}"),
        };
        let network = recognise(name.clone(), Arc::clone(&below));
        if is_network(&network) {
            recognised = true;
            found.push(network);
        } else if let Some(networks) = inner(&name, &below, recognise, is_network, notes, depth - 1) {
            recognised = true;
            found.extend(networks);
        } else {
            found.push(network);
        }
    }
    if !recognised {
        return None;
    }
    if groups.contains("") {
        let strays: Vec<_> = tensors.names().into_iter().filter(|n| !n.contains('.')).collect();
        notes.push(format!("ignored tensors outside the networks: {}", abbreviate(&strays)));
    }
    Some(found)
}

/// `tensors` without the wrapper prefixes that all names have.
fn without_wrappers(tensors: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
    let names = tensors.names();
    let mut length = 0;
    while let Some(wrapper) = WRAPPERS.iter().find(|w| {
        let mut wrapped = names.iter().filter(|n| *n != COUNTER).peekable();
        wrapped.peek().is_some() && wrapped.all(|n| n.get(length..).is_some_and(|rest| rest.starts_with(**w)))
    }) {
        length += wrapper.len();
    }
    if length == 0 {
        return tensors;
    }
    Arc::new(Renamed::new(tensors, |n| if n == COUNTER { None } else { n.get(length..).map(str::to_owned) }))
}
