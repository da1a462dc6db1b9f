//! What must hold of a finished graph.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::proto::ModelProto;

/// Every name is defined once and before its use; nothing is computed or stored in vain.
pub(crate) fn check(model: &ModelProto) -> Result<()> {
    let Some(graph) = &model.graph else {
        return Err(Error::Graph { graph: String::new(), what: "there is no graph".to_owned() });
    };
    let broken = |what: String| Error::Graph { graph: graph.name.clone(), what };
    let mut defined: HashSet<&str> = HashSet::new();
    let given = graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|t| &t.name));
    for name in given {
        if !defined.insert(name) {
            return Err(broken(format!("`{name}` is defined twice")));
        }
    }
    let mut used: HashSet<&str> = HashSet::new();
    let mut nodes: HashSet<&str> = HashSet::new();
    for node in &graph.node {
        if !nodes.insert(&node.name) {
            return Err(broken(format!("two nodes are called `{}`", node.name)));
        }
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            if !defined.contains(input.as_str()) {
                return Err(broken(format!("node `{}` uses `{input}` before it is defined", node.name)));
            }
            used.insert(input);
        }
        for output in &node.output {
            if !defined.insert(output) {
                return Err(broken(format!("`{output}` is defined twice")));
            }
        }
    }
    if graph.output.is_empty() {
        return Err(broken("there is no output".to_owned()));
    }
    for output in &graph.output {
        if !defined.contains(output.name.as_str()) {
            return Err(broken(format!("output `{}` is not defined", output.name)));
        }
        used.insert(&output.name);
    }
    if let Some(vain) = defined.iter().filter(|d| !used.contains(*d)).min() {
        return Err(broken(format!("`{vain}` is never used")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::graph::{Dim, ElementType, GraphBuilder};

    #[test]
    fn broken_graphs_are_refused() {
        let start = || {
            let mut g = GraphBuilder::new("g");
            let x = g.input("x", ElementType::F32, &[Dim::Known(2)]).unwrap();
            (g, x)
        };
        let (g, _) = start();
        assert!(g.finish().unwrap_err().to_string().contains("no output"));
        let (mut g, x) = start();
        g.output("y", &x).unwrap();
        g.constant("w", &[2], vec![1.0, 2.0]).unwrap();
        assert!(g.finish().unwrap_err().to_string().contains("`w` is never used"));
        let (mut g, _) = start();
        let (_, other) = start();
        let other = {
            let (mut h, x) = start();
            drop(other);
            h.scale(&x, 2.0).unwrap()
        };
        g.output("y", &other).unwrap();
        assert!(g.finish().unwrap_err().to_string().contains("before it is defined"));
        let (mut g, x) = start();
        g.output("y", &x).unwrap();
        assert!(g.output("y", &x).unwrap_err().to_string().contains("taken"));
    }
}
