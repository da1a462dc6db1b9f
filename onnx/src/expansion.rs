//! Tensors with a size that constants of the graph determine. A few bytes may specify a shape of any size, and runtimes
//! compute such tensors when they open the graph.

use std::collections::HashMap;

/// Maximum number of integers of a constant that is propagated. Shapes and limits of axes have fewer.
pub(crate) const MAX_INTEGERS: usize = 64;

/// Number of elements above which a concatenated tensor is charged.
const HUGE: usize = 1 << 24;

/// A node with an output size that is the value of an operand, or a node that propagates such values.
#[derive(Debug)]
pub(crate) struct Expansion {
    pub(crate) op: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) output: String,
    /// The integer constant or shape in the attributes, if there is one.
    pub(crate) value: Option<Vec<i64>>,
}

/// Whether the output size or iteration count of `op` is the value of an operand or attribute, or `op` may propagate
/// such values.
pub(crate) fn is_followed(op: &str) -> bool {
    const MAKES: [&str; 9] =
        ["ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "RandomNormal", "RandomUniform", "Resize", "Pad"];
    const PASSES_ON: [&str; 9] =
        ["Constant", "Identity", "Cast", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Mul", "Add"];
    op == "Loop" || MAKES.contains(&op) || PASSES_ON.contains(&op)
}

/// Operator, output, and a lower bound on the number of output elements, for each of `nodes` with an output of constant
/// size or a huge concatenation. For a loop, the number is the number of iterations. `constants` are integer tensors by
/// name. `elements_of` returns the number of elements of a weight.
pub(crate) fn sizes(
    nodes: &[Expansion],
    mut constants: HashMap<String, Vec<i64>>,
    elements_of: impl Fn(&str) -> Option<usize>,
) -> impl Iterator<Item = (&str, &str, usize)> {
    // Lower bounds on the number of elements of outputs.
    let mut least: HashMap<&str, usize> = HashMap::new();
    nodes.iter().filter_map(move |node| {
        let size = |name: &String| match name.as_str() {
            "" => 0,
            name => least.get(name).copied().or_else(|| elements_of(name)).unwrap_or(1),
        };
        let size_of = |i: usize| node.inputs.get(i).map_or(0, size);
        let of = |i: usize| node.inputs.get(i).and_then(|name| constants.get(name)).map(Vec::as_slice);
        let first = |i: usize| of(i).and_then(|v| v.first().copied());
        let made = match node.op.as_str() {
            "ConstantOfShape" => of(0).map(elements),
            "Loop" => first(0).map(|trips| elements(&[trips])),
            "Expand" => of(1).map(|shape| elements(shape).max(size_of(0))),
            "Tile" => of(1).map(|repeats| elements(repeats).saturating_mul(size_of(0))),
            "RandomNormal" | "RandomUniform" => node.value.as_deref().map(elements),
            "Resize" => of(3).map(elements),
            "OneHot" => first(1).map(|depth| elements(&[depth])),
            "Range" => first(0).zip(first(1)).zip(first(2)).map(|((from, to), step)| {
                let far = to.saturating_sub(from).unsigned_abs() / step.unsigned_abs().max(1);
                usize::try_from(far).unwrap_or(usize::MAX)
            }),
            "Pad" => of(1).map(|pads| {
                let (before, after) = pads.split_at(pads.len() / 2);
                let both: Vec<i64> = before.iter().zip(after).map(|(a, b)| a.saturating_add(*b).max(1)).collect();
                elements(&both)
            }),
            _ => None,
        };
        let joined = match node.op.as_str() {
            "Concat" => node.inputs.iter().map(size).fold(0, usize::saturating_add),
            "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" => size_of(0),
            "Mul" | "Add" => size_of(0).max(size_of(1)),
            _ => 1,
        };
        if node.op != "Loop" {
            least.insert(&node.output, made.unwrap_or(joined));
        }
        if let Some(n) = made.or((node.op == "Concat" && joined > HUGE).then_some(joined)) {
            return Some((node.op.as_str(), node.output.as_str(), n));
        }
        let known = match node.op.as_str() {
            "Constant" => node.value.clone(),
            "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" => of(0).map(<[i64]>::to_vec),
            "Concat" => (0..node.inputs.len()).map(of).collect::<Option<Vec<_>>>().map(|parts| parts.concat()),
            "Mul" => both(of(0), of(1), i64::saturating_mul),
            "Add" => both(of(0), of(1), i64::saturating_add),
            _ => None,
        };
        if let Some(known) = known.filter(|k| k.len() <= MAX_INTEGERS) {
            constants.insert(node.output.clone(), known);
        }
        None
    })
}

/// Number of elements of the shape `dims`, saturating. Negative lengths count as 1.
fn elements(dims: &[i64]) -> usize {
    dims.iter().fold(1, |n: usize, d| n.saturating_mul(usize::try_from(*d).unwrap_or(1)))
}

/// Applies `f` elementwise. A single element is broadcast.
fn both(a: Option<&[i64]>, b: Option<&[i64]>, f: fn(i64, i64) -> i64) -> Option<Vec<i64>> {
    let (a, b) = (a?, b?);
    let length = a.len().max(b.len());
    let at = |v: &[i64], i: usize| if v.len() == 1 { Some(v[0]) } else { v.get(i).copied() };
    (0..length).map(|i| Some(f(at(a, i)?, at(b, i)?))).collect()
}
