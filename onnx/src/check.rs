//! Invariants of a finished graph.

use std::collections::HashSet;

use crate::error::{Result, invalid};
use crate::proto::ModelProto;

/// Checks that every name is defined once and before its use, and that no input, initializer or node output is unused.
pub(crate) fn check(model: &ModelProto) -> Result<()> {
    let Some(graph) = &model.graph else {
        return Err(invalid("", "model".to_owned(), "a graph", "none"));
    };
    let broken =
        |place: &str, expected: &str, found: String| Err(invalid(&graph.name, format!("`{place}`"), expected, found));
    let twice = |place: &str| broken(place, "one definition", "two".to_owned());
    let mut defined: HashSet<&str> = HashSet::new();
    let given = graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|t| &t.name));
    for name in given {
        if !defined.insert(name) {
            return twice(name);
        }
    }
    let mut used: HashSet<&str> = HashSet::new();
    let mut nodes: HashSet<&str> = HashSet::new();
    for node in &graph.node {
        if !nodes.insert(&node.name) {
            return broken(&node.name, "one node of this name", "two".to_owned());
        }
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            if !defined.contains(input.as_str()) {
                return broken(&node.name, "inputs that are defined before it", format!("`{input}`"));
            }
            used.insert(input);
        }
        for output in &node.output {
            if !defined.insert(output) {
                return twice(output);
            }
        }
    }
    if graph.output.is_empty() {
        return Err(invalid(&graph.name, "outputs".to_owned(), "at least one", "none"));
    }
    for output in &graph.output {
        if !defined.contains(output.name.as_str()) {
            return broken(&output.name, "a node that writes this output", "none".to_owned());
        }
        used.insert(&output.name);
    }
    if let Some(unused) = defined.iter().filter(|d| !used.contains(*d)).min() {
        return broken(unused, "a node or output that reads it", "none".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::graph::{Dim, Edge, ElementType, GraphBuilder};

    fn start() -> (GraphBuilder, Edge) {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Known(2)]).unwrap();
        (g, x)
    }

    fn refusal(g: GraphBuilder) -> String {
        g.finish().unwrap_err().to_string()
    }

    #[test]
    fn invalid_graphs_are_errors() {
        let (g, _) = start();
        assert_eq!(refusal(g), "graph `g`: outputs: expected at least one, found none");
        let (mut g, x) = start();
        g.output("y", &x).unwrap();
        g.constant("w", &[2], vec![1.0, 2.0]).unwrap();
        assert_eq!(refusal(g), "graph `g`: `w`: expected a node or output that reads it, found none");
        let (mut g, x) = start();
        g.output("y", &x).unwrap();
        assert_eq!(g.output("y", &x).unwrap_err().to_string(), "graph `g`: `y`: expected a new name, found one in use");
    }

    #[test]
    fn names_and_sizes_that_onnx_cannot_store_are_errors() {
        let (mut g, x) = start();
        assert!(g.output("", &x).is_err() && g.input("", ElementType::F32, &[]).is_err());
        assert!(g.constant("", &[1], vec![0.0]).is_err() && g.constant("w", &[usize::MAX, 2], vec![]).is_err());
        assert!(g.input("long", ElementType::F32, &[Dim::Known(usize::MAX)]).is_err());
    }

    #[test]
    fn edges_of_another_graph_are_errors() {
        let (mut g, x) = start();
        let (mut h, same_name) = start();
        let y = g.add(&x, &same_name).unwrap();
        g.output("y", &y).unwrap();
        let expected = "graph `g`: operands: expected edges of this graph, found edge `x` of another graph, `g`";
        assert_eq!(refusal(g), expected);
        h.output("y", &x).unwrap();
        assert_eq!(refusal(h), expected);
    }
}
