//! The execution provider that ONNX Runtime assigned each node of a graph to.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer as _;
use ort::session::Session;
use ort::sys::{OrtEpAssignedNode, OrtStatusPtr};

use crate::PlacedNode;

/// Session option that makes ONNX Runtime record the assignment.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";
/// Name of the CPU provider in ONNX Runtime.
pub(super) const CPU: &str = "CPUExecutionProvider";

/// The nodes with their providers, before fusions inside a provider.
#[allow(
    unsafe_code,
    reason = "ort has no safe call for it; the arrays and strings belong to the session, which is borrowed"
)]
pub(super) fn nodes(session: &Session) -> ort::Result<Vec<PlacedNode>> {
    let api = ort::api();
    // SAFETY: the status comes from ONNX Runtime, and its ownership is taken once.
    let checked = |status: OrtStatusPtr| -> ort::Result<()> { unsafe { ort::Error::result_from_status(status) } };
    let mut found = Vec::new();
    // SAFETY: the calls write the pointers before they are read. Arrays have the returned length and live as long as
    // the session.
    unsafe {
        let text = |read: &mut dyn FnMut(*mut *const c_char) -> OrtStatusPtr| -> ort::Result<String> {
            let mut text = ptr::null();
            checked(read(&raw mut text))?;
            Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let (mut graphs, mut count) = (ptr::null(), 0);
        checked((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut graphs, &raw mut count))?;
        for i in 0..count {
            let graph = *graphs.add(i);
            let provider = text(&mut |to| (api.EpAssignedSubgraph_GetEpName)(graph, to))?;
            let (mut nodes, mut count): (*const *const OrtEpAssignedNode, usize) = (ptr::null(), 0);
            checked((api.EpAssignedSubgraph_GetNodes)(graph, &raw mut nodes, &raw mut count))?;
            for j in 0..count {
                let node = *nodes.add(j);
                found.push(PlacedNode {
                    provider: provider.clone(),
                    name: text(&mut |to| (api.EpAssignedNode_GetName)(node, to))?,
                    op: text(&mut |to| (api.EpAssignedNode_GetOperatorType)(node, to))?,
                });
            }
        }
    }
    Ok(found)
}
