//! Loss curves as SVG.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use fs_err as fs;
use serde_json::Value;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 44.0;
/// How names of what is plotted begin.
const PLOTTED: [&str; 2] = ["Loss/", "Metrics/"];

/// One SVG for each loss in a run's `stats.jsonl`, or for each metric in its `metrics.jsonl`: (name, SVG), over thousands of images.
///
/// # Errors
/// An unreadable log.
pub(super) fn curves(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = fs::read_to_string(path)?;
    let lines: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot plot `{}`", path.display()))?;
    let mut names: Vec<&str> = Vec::new();
    let short =
        |name: &str| PLOTTED.iter().find_map(|prefix| name.strip_prefix(prefix)).map(|n| n.replace(['_', '/'], " "));
    let plotted = lines.iter().filter_map(Value::as_object).flat_map(|l| l.keys()).filter(|k| short(k).is_some());
    for name in plotted {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    Ok(names
        .into_iter()
        .map(|name| {
            let mean = |l: &Value, name: &str| l.get(name)?.get("mean")?.as_f64();
            let point = |l: &Value| Some((mean(l, "Progress/kimg")?, mean(l, name)?));
            let points: Vec<(f64, f64)> = lines.iter().filter_map(point).collect();
            (short(name).unwrap_or_default(), curve(&points))
        })
        .collect())
}

fn curve(points: &[(f64, f64)]) -> String {
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if high > low { (low, high) } else { (low - 0.5, low + 0.5) }
    };
    let (x0, x1) = range(points.iter().map(|p| p.0).collect());
    let (y0, y1) = range(points.iter().map(|p| p.1).collect());
    let x = |v: f64| MARGIN + (v - x0) / (x1 - x0) * (WIDTH - MARGIN - 8.0);
    let y = |v: f64| HEIGHT - 24.0 - (v - y0) / (y1 - y0) * (HEIGHT - 36.0);
    let mut line = String::new();
    for (a, b) in points {
        let _ = write!(line, "{:.1},{:.1} ", x(*a), y(*b));
    }
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><path d=\"M{MARGIN} 8V{base}H{WIDTH}\" class=\"axis\"/>\
         <polyline points=\"{}\"/><text x=\"2\" y=\"16\">{}</text><text x=\"2\" y=\"{base}\">{}</text>\
         <text x=\"{MARGIN}\" y=\"{HEIGHT}\">{x0:.1}</text><text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{x1:.1} kimg</text></svg>",
        line.trim_end(),
        short(y1),
        short(y0),
        base = HEIGHT - 24.0,
    )
}

fn short(v: f64) -> String {
    if v.abs() >= 100.0 { format!("{v:.0}") } else { format!("{v:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_gets_a_curve() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.jsonl");
        fs::write(
            &path,
            "{\"Progress/kimg\":{\"mean\":1.0},\"Loss/G/loss\":{\"mean\":2.0}}\n\
             {\"Progress/kimg\":{\"mean\":2.0},\"Loss/G/loss\":{\"mean\":1.0},\"Loss/r1_penalty\":{\"mean\":3.0}}\n",
        )
        .unwrap();
        let found = curves(&path).unwrap();
        assert_eq!(found.iter().map(|c| c.0.as_str()).collect::<Vec<_>>(), ["G loss", "r1 penalty"]);
        assert!(found[0].1.contains("2.0 kimg"));
        fs::write(&path, "not json").unwrap();
        assert!(curves(&path).unwrap_err().to_string().contains("stats.jsonl"));
    }
}
