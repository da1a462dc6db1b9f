//! Checks the inputs of a run against the model.

use d2o_onnx::graph::{Dim, ElementType};
use d2o_onnx::read::ModelInfo;

use crate::error::{Error, Result};

/// Checks `inputs` against `model` and returns them in the order of the model. Element types, ranks and fixed lengths
/// must be equal. Axes of one symbol must have equal lengths in all inputs.
pub(crate) fn arrange<'a, T>(
    model: &ModelInfo,
    inputs: &'a [(&str, T)],
    described: impl Fn(&T) -> (ElementType, &[usize]),
) -> Result<Vec<&'a T>> {
    let wrong = |name: &str, expected: String, found: String| Error::Input { name: name.to_owned(), expected, found };
    for (i, (name, _)) in inputs.iter().enumerate() {
        if model.input(name).is_none() {
            let names = model.inputs.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(wrong(name, names, "another name".to_owned()));
        }
        if inputs[..i].iter().any(|(n, _)| n == name) {
            return Err(wrong(name, "one tensor".to_owned(), "two".to_owned()));
        }
    }
    // Lengths of symbolic axes, by symbol.
    let mut lengths: Vec<(&str, usize)> = Vec::new();
    let mut arranged = Vec::with_capacity(inputs.len());
    for wanted in &model.inputs {
        let expected = || format!("{} [{}]", wanted.element, wanted.axes().join(", "));
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| *n == wanted.name) else {
            return Err(wrong(&wanted.name, expected(), "nothing".to_owned()));
        };
        let (element, dims) = described(tensor);
        let mut fits = element == wanted.element && dims.len() == wanted.dims.len();
        let mut other = None;
        for ((have, want), symbol) in dims.iter().zip(&wanted.dims).zip(&wanted.symbols) {
            match (want, symbol) {
                (Dim::Known(n), _) => fits &= n == have,
                (_, None) => {}
                (_, Some(symbol)) => match lengths.iter().find(|(name, _)| name == symbol) {
                    Some((_, length)) if length != have => other = Some(format!(" where `{symbol}` is {length}")),
                    Some(_) => {}
                    None => lengths.push((symbol, *have)),
                },
            }
        }
        if !fits || other.is_some() {
            let found = format!("{element} {dims:?}{}", other.unwrap_or_default());
            return Err(wrong(&wanted.name, expected(), found));
        }
        arranged.push(tensor);
    }
    Ok(arranged)
}

#[cfg(test)]
mod tests {
    use d2o_onnx::read::ValueInfo;
    use ndarray::ArrayD;

    use super::*;
    use crate::Tensor;

    fn value(name: &str, axes: &[&str]) -> ValueInfo {
        let known = |axis: &&str| axis.parse().map_or(Dim::Batch, Dim::Known);
        let symbol = |axis: &&str| Some((*axis).to_owned()).filter(|a| a.parse::<usize>().is_err() && a != "?");
        let (dims, symbols) = (axes.iter().map(known).collect(), axes.iter().map(symbol).collect());
        ValueInfo { name: name.to_owned(), element: ElementType::F32, dims, symbols }
    }

    fn zeros(dims: &[usize]) -> Tensor {
        ArrayD::<f32>::zeros(dims).into()
    }

    /// The error of `arrange` as text; empty if there is none.
    fn refusal(model: &ModelInfo, inputs: &[(&str, Tensor)]) -> String {
        let arranged = arrange(model, inputs, |t| (t.element(), t.dims()));
        arranged.map_or_else(|e| e.to_string(), |_| String::new())
    }

    #[test]
    fn axes_of_one_symbol_have_equal_lengths() {
        let inputs =
            vec![value("x", &["batch", "3", "height", "width"]), value("s", &["batch"]), value("f", &["?", "?"])];
        let model = ModelInfo { inputs, ..ModelInfo::default() };
        let text =
            |x: &[usize], s: usize| refusal(&model, &[("x", zeros(x)), ("s", zeros(&[s])), ("f", zeros(&[1, 2]))]);
        assert_eq!(text(&[8, 3, 299, 300], 8), "");
        assert_eq!(text(&[8, 3, 299, 299], 4), "input `s`: expected f32 [batch], found f32 [4] where `batch` is 8");
        assert_eq!(
            text(&[8, 4, 299, 299], 8),
            "input `x`: expected f32 [batch, 3, height, width], found f32 [8, 4, 299, 299]"
        );
    }

    #[test]
    fn each_input_is_given_once() {
        let model = ModelInfo { inputs: vec![value("x", &["2"]), value("y", &["2"])], ..ModelInfo::default() };
        let [x, y] = [("x", zeros(&[2])), ("y", zeros(&[2]))];
        assert_eq!(refusal(&model, &[y.clone(), x.clone()]), "");
        assert_eq!(refusal(&model, std::slice::from_ref(&x)), "input `y`: expected f32 [2], found nothing");
        assert_eq!(refusal(&model, &[x.clone(), y, x]), "input `x`: expected one tensor, found two");
        assert_eq!(refusal(&model, &[("z", zeros(&[2]))]), "input `z`: expected x, y, found another name");
    }
}
