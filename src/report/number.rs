//! Numbers as text.

use d2o_evaluations::result::{Metric, digits};

use super::svg::minus;

/// `value` with `places` decimal places; with five significant digits if these would show only zeros, or from 1e9 on.
pub(super) fn fixed(value: f64, places: usize) -> String {
    const LARGEST: f64 = 1e9;
    const DIGITS: usize = 5;
    let text = format!("{value:.places$}");
    let vanishes = value != 0.0 && text.chars().all(|c| matches!(c, '0' | '.' | '-'));
    if vanishes || value.abs() >= LARGEST || !value.is_finite() { minus(&digits(value, DIGITS)) } else { minus(&text) }
}

/// A difference, always with its sign.
pub(super) fn signed(value: f64, places: usize) -> String {
    let text = fixed(value, places);
    if value > 0.0 { format!("+{text}") } else { text }
}

/// Spread of a metric: its 95 % interval `[a, b]`, or `± s` with the standard deviation over splits or subsets.
pub(super) fn spread(metric: &Metric, places: usize) -> Option<String> {
    match (metric.ci95, metric.std) {
        (Some([low, high]), _) => Some(format!("[{}, {}]", fixed(low, places), fixed(high, places))),
        (None, Some(std)) => Some(format!("± {}", fixed(std, places))),
        (None, None) => None,
    }
}

/// A duration in hours and minutes, minutes and seconds, seconds, or milliseconds.
pub(super) fn seconds(value: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 3600.0;
    if value >= HOUR {
        format!("{:.0} h {:02.0} min", (value / HOUR).floor(), (value % HOUR / MINUTE).floor())
    } else if value >= 2.0 * MINUTE {
        format!("{:.0} min {:02.0} s", (value / MINUTE).floor(), (value % MINUTE).floor())
    } else if value >= 0.01 {
        format!("{value:.2} s")
    } else {
        format!("{:.2} ms", 1e3 * value)
    }
}

/// `n` with the matching noun: `one` for 1, otherwise `many`.
pub(super) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent == 0.0 || percent >= 0.1 { format!("{percent:.1} %") } else { format!("{} %", digits(percent, 2)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_they_say() {
        assert_eq!([fixed(272.7736, 2), fixed(-0.5, 1), fixed(0.0, 4)], ["272.77", "−0.5", "0.0000"]);
        assert_eq!([fixed(5.6e-12, 10), fixed(2e9, 0), fixed(f64::INFINITY, 2)], ["5.6e−12", "2e+09", "inf"]);
        assert_eq!([signed(1.0, 1), signed(-1.0, 1), signed(0.0, 1)], ["+1.0", "−1.0", "0.0"]);
        let metric = Metric { ci95: Some([1.0, 2.0]), std: Some(9.0), ..Metric::new(1.5) };
        assert_eq!(spread(&metric, 1).as_deref(), Some("[1.0, 2.0]"));
        assert_eq!(
            [seconds(7265.0), seconds(125.0), seconds(4.469), seconds(0.000_17)],
            ["2 h 01 min", "2 min 05 s", "4.47 s", "0.17 ms"]
        );
        assert_eq!([percent(0.0), percent(0.123_4), percent(6.6e-6)], ["0.0 %", "12.3 %", "0.00066 %"]);
    }
}
