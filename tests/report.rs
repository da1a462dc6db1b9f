//! `d2o report`: which results share a table, what pages and tables contain, and how pages are laid out.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use d2o_refs::batch;
use fs_err as fs;
use serde_json::{Value, json};

mod common;
use common::page::{self, Page};
use common::{attempt, d2o, write_images, write_lite0};

/// Widths of pages in pixels: a phone, a tablet in portrait and in landscape, a screen.
const WIDTHS: [u32; 4] = [360, 768, 1024, 1280];

/// A result of 500 images under `edm`; `metrics` are values, or objects with intervals.
fn result(title: &str, metrics: &Value) -> Value {
    let metric =
        |value: &Value| if value.is_object() { value.clone() } else { json!({"value": value, "verified": true}) };
    let metrics: serde_json::Map<String, Value> =
        metrics.as_object().unwrap().iter().map(|(name, value)| (name.clone(), metric(value))).collect();
    json!({
        "schema": 2,
        "protocol": {"name": "edm", "covariance": "N - 1"},
        "deviations": [],
        "samples": {"title": title, "path": format!("{title}.npz"), "count": 500, "sha256": "5".repeat(64)},
        "reference": {"title": "reference", "path": "ref.npz", "count": 2460, "sha256": "9fc9802d8cee".repeat(6)},
        "extractors": {"features": {
            "name": "inception-2015-12-05", "path": "inception.onnx", "sha256": "e".repeat(64), "dims": 2048,
            "weights_digest": "d".repeat(64), "verified": "inception-2015-12-05.pkl",
            "preprocessing": {"resampling": {"resize": "tensorflow"}, "scaling": "tensorflow"},
        }},
        "runtime": {"runtime": "ort-cpu", "d2o_version": "0.1.0", "command": format!("d2o evaluate {title}.npz")},
        "metrics": metrics, "warnings": [], "timings": {"features": 3.5, "features_network": 3.25, "frechet": 0.5},
    })
}

fn deviation(kind: &str, subject: &str) -> Value {
    json!({"kind": kind, "subject": subject, "found": "one", "expected": "other"})
}

/// Writes `value` as `name`.
fn write(dir: &Path, name: &str, value: &Value) {
    fs::write(dir.join(name), value.to_string()).unwrap();
}

/// The page of `args`, which must be well-formed.
fn page_of(dir: &Path, args: &[&str]) -> Page {
    d2o(dir, &[&["report"], args, &["--overwrite", "--out", "r.html"]].concat());
    let page = page::parse(&fs::read_to_string(dir.join("r.html")).unwrap());
    page.ensure_sound();
    page
}

/// The page of `results`.
fn page_of_results(dir: &Path, results: &[Value], args: &[&str]) -> Page {
    write(dir, "results.json", &json!(results));
    page_of(dir, &[&["results.json"], args].concat())
}

#[test]
fn runs_that_cannot_be_compared_stand_in_tables_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let of = |title: &str, fid: f64, change: &dyn Fn(&mut Value)| {
        let mut result = result(title, &json!({"fid": fid, "recall": 0.5}));
        change(&mut result);
        result
    };
    let results = [
        of("a", 2.5, &|_| {}),
        of("other protocol", 1.0, &|r| r["protocol"]["name"] = json!("clean")),
        of("b", 2.0, &|_| {}),
        of("fewer images", 1.0, &|r| r["samples"]["count"] = json!(100)),
        of("other reference", 1.0, &|r| r["reference"]["sha256"] = json!("0".repeat(64))),
        of("deviates", 1.0, &|r| r["deviations"] = json!([deviation("quantiser", "samples")])),
    ];
    let page = page_of_results(dir.path(), &results, &[]);
    let tables = page.tables("main");
    let heads: Vec<Vec<&str>> = tables.iter().map(|t| t[0][1..].iter().map(String::as_str).collect()).collect();
    assert_eq!(
        heads,
        [
            vec!["a baseline", "b"],
            vec!["other protocol"],
            vec!["fewer images"],
            vec!["other reference"],
            vec!["deviates"]
        ]
    );
    assert_eq!(tables[0][1], ["FID ↓, lower is better", "2.5000", "2.0000, best −0.5000 (−20.0 %), better"]);
    assert_eq!(tables[0][2], ["recall ↑, higher is better", "0.5000, best", "0.5000, best 0.0000, equal"]);
    // A single value is neither marked as the best nor compared.
    for table in &tables[1..] {
        assert_eq!(table[1], ["FID ↓, lower is better", "1.0000"]);
    }
    let text = page.text();
    for reason in [
        "protocol: clean instead of edm",
        "number of images: 100 instead of 500",
        "reference: ref.npz (2460 images, 000000000000) instead of ref.npz (2460 images, 9fc9802d8cee)",
        "deviations: quantiser: one instead of other instead of none",
    ] {
        assert!(text.contains(reason), "{reason}: {text}");
    }
    assert_eq!(text.matches("Not comparable with table 1").count(), 4);
    // A deviation is listed with its run and with its table.
    assert!(text.contains("Deviation from the protocol quantiser of samples: one instead of other"), "{text}");
    assert!(text.contains("Deviations of every run in this table quantiser: one instead of other"), "{text}");
}

#[test]
fn networks_have_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let a = result("a", &json!({"fid": 3.0, "precision": 0.5}));
    let mut b = result("b", &json!({"fd": 2.0, "precision": 0.75}));
    b["extractors"]["features"]["name"] = json!("dinov2");
    b["extractors"]["features"]["weights_digest"] = json!("other");
    b["extractors"]["features"]["verified"] = Value::Null;
    b["deviations"] = json!([deviation("extractor", "samples")]);
    let page = page_of_results(dir.path(), &[a, b], &[]);
    assert_eq!(
        page.tables("main")[0][1..],
        [
            vec!["FID ↓, lower is better", "3.0000", "–"],
            vec!["FD ↓, lower is better (dinov2) unverified", "–", "2.0000"],
            vec!["precision ↑, higher is better", "0.5000", "–"],
            vec!["precision ↑, higher is better (dinov2) unverified", "–", "0.7500"],
        ]
    );
}

#[test]
fn metrics_have_one_order_and_their_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = json!({
        "fid_inf": 1.5, "clip_fid": 3.0, "kid": {"value": 0.000_560_62, "std": 0.001_012}, "coverage": 0.9, "density": 1.1, "recall": 0.6,
        "precision": {"value": 0.7, "ci95": [0.65, 0.75]}, "is": 9.5, "sfid": 6.0, "fid": {"value": 1.79, "ci95": [1.7, 1.9]},
    });
    let mut run = result("a", &metrics);
    run["extractors"]["clip"] = json!({"name": "clip", "path": "c.onnx", "sha256": "c", "dims": 512});
    run["failed"] = json!({"kd": "too few images"});
    let page = page_of_results(dir.path(), &[run], &[]);
    let rows = &page.tables("main")[0];
    let names: Vec<&str> = rows[1..].iter().map(|r| r[0].split(' ').next().unwrap()).collect();
    assert_eq!(names, ["FID", "sFID", "IS", "precision", "recall", "density", "coverage", "KID", "CLIP-FID", "FID∞"]);
    assert_eq!((rows[1][1].as_str(), rows[8][1].as_str()), ("1.7900 [1.7000, 1.9000]", "0.00056062 ± 0.00101200"));
    assert!(page.text().contains("Not computed KD (inception-2015-12-05): too few images"), "{}", page.text());
}

#[test]
fn differences_are_to_the_baseline_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = result("c", &json!({"fid": 9.0}));
    other["samples"]["count"] = json!(7);
    let results = [result("a", &json!({"fid": 4.0})), result("b", &json!({"fid": 5.0})), other];
    let page = page_of_results(dir.path(), &results, &["--baseline", "b"]);
    let tables = page.tables("main");
    assert_eq!(tables[0][0], ["Metric", "a", "b baseline"]);
    assert_eq!(tables[0][1][1..], ["4.0000, best −1.0000 (−20.0 %), better", "5.0000"]);
    assert_eq!(tables[1][1][1..], ["9.0000"]);
    assert!(page.text().contains("No differences: “b” cannot be compared with these runs."));
    let outcome = attempt(dir.path(), &["report", "results.json", "--baseline", "x", "--out", "x.html"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("no result has the title “x”"), "{outcome}");
    assert!(outcome.stderr.contains("“a”, “b”, “c”") && !dir.path().join("x.html").exists(), "{outcome}");
}

/// `value` with every text replaced by `text`, except those that a reader interprets.
fn with_every_text(value: &Value, text: &str) -> Value {
    const INTERPRETED: [&str; 3] = ["kind", "resize", "scaling"];
    match value {
        Value::String(_) => json!(text),
        Value::Array(items) => items.iter().map(|v| with_every_text(v, text)).collect(),
        Value::Object(fields) => {
            let field = |(key, v): (&String, &Value)| {
                let kept = INTERPRETED.contains(&key.as_str());
                (key.clone(), if kept { v.clone() } else { with_every_text(v, text) })
            };
            Value::Object(fields.iter().map(field).collect())
        }
        other => other.clone(),
    }
}

#[test]
fn texts_of_files_are_text() {
    const HOSTILE: &str =
        "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)> & {{ 7*7 }} \u{1b}[2J";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut run = result(
        "a",
        &json!({"fid": {"value": 1.0, "ci95": [0.9, 1.1]}, "precision": 0.5, "recall": 0.5, "fid_inf": 1.0}),
    );
    run["deviations"] = json!([deviation("quantiser", "samples")]);
    run["failed"] = json!({"kid": "why"});
    run["warnings"] = json!(["warning"]);
    run["notes"] = json!(["note"]);
    run["samples"]["generator"] = json!({"sampler": {"edm": {"steps": "many"}}, "seeds": "s"});
    run["fd_infinity"] = json!({"sizes": [50, 500], "distances": [2.0, 1.5], "intercept": 1.0, "slope": 50.0});
    run["nearest"] =
        json!({"role": "features", "samples": [{"sample": 0, "neighbours": [{"index": 1, "distance": 2.0}]}]});
    let other = with_every_text(&run, HOSTILE);
    run["metrics"][HOSTILE] = json!({"value": 1.0});
    run["timings"][HOSTILE] = json!(1.0);
    run["extractors"][HOSTILE] = run["extractors"]["features"].clone();
    let verdict = with_every_text(&verification(), HOSTILE);
    write(dir, "a.json", &json!([run, other, verdict]));
    let line = json!({"Progress/kimg": {"mean": 1.0}, "Loss/x</text><script>/y": {"mean": 1.0}, "Metrics/z<script>": {"mean": 1.0}, "snapshot": HOSTILE});
    fs::write(dir.join("log.jsonl"), format!("{line}\n")).unwrap();
    write_images(&dir.join("i.npz"), 0..3);
    // A title ends at the first `=`.
    let title = HOSTILE.replace('=', "");
    let (images, log) = (format!("{title}=i.npz"), format!("{title}=log.jsonl"));
    let args = ["a.json", "--title", HOSTILE, "--images", &images, "--losses", &log];
    // Hostile texts add no elements; `ensure_sound` checks for scripts and attributes.
    let hostile = page_of(dir, &args);
    let shown = HOSTILE.replace('\u{1b}', "\u{fffd}");
    assert!(hostile.text().contains(&shown));
    assert_eq!(hostile.elements.iter().filter(|e| e.name == "img").count(), 1, "the grid");
    assert_eq!(hostile.elements.iter().filter(|e| e.name == "title" && hostile.is_in_head(e)).count(), 1);
}

/// A verification with every optional part.
fn verification() -> Value {
    json!({
        "model": "m.onnx", "reference": "ort-cpu", "samples": 8, "tolerance": 2e-5, "agree": false,
        "outputs": [{"runtime": "tract", "name": "images", "max_abs": 0.5, "max_rel": 0.25, "snr_db": 31.0, "ulps": [4, 2, 1, 1],
                     "pixels_changed": 0.125, "not_finite": 0, "agrees": false}],
        "metrics": [{"runtime": "tract", "extractor": "lite0", "reference_distance": 2.0, "distance": 2.5}],
        "divergence": [{"runtime": "tract", "node": "enc/conv0/Conv", "scope": "enc.conv0", "op": "Conv", "weights": ["enc.conv0.weight"],
                        "max_abs": 0.1, "max_rel": 0.01, "agreeing": 41}],
        "nodes": [{"provider": "CPUExecutionProvider", "op": "Conv", "count": 12}],
        "profile": [{"node": "enc/conv0/Conv", "op": "Conv", "milliseconds": 12.5, "share": 0.5},
                    {"node": "enc/conv1/Conv", "op": "Conv", "milliseconds": 6.25, "share": 0.25}],
        "seconds": {"ort-cpu": 0.5, "tract": 2.0},
    })
}

#[test]
fn verifications_say_where_runtimes_part() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "v.json", &verification());
    let text = page_of(dir, &["v.json"]).text();
    for part in [
        "1 verification differs",
        "runtimes differ",
        "First diverging node on tract",
        "enc/conv0/Conv (Conv) in enc.conv0: max abs 0.1, max rel 0.01. 41 earlier nodes agree. Its weights: enc.conv0.weight.",
        "FD (lite0) 2.5 2 0.5",
        "enc/conv1/Conv Conv 6.25 25.0 %",
        "75.0 % of values differ by at most 1 unit",
        "ort-cpu 0.50 s; tract 2.00 s",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A precision study measures differences, so nothing has failed.
    let mut study = verification();
    study["precisions"] = json!([
        {"precision": "fp32", "runtime": "ort-cpu", "speed": 10.0}, {"precision": "tf32", "skipped": "no CUDA device"}
    ]);
    write(dir, "p.json", &study);
    let page = page_of(dir, &["p.json"]);
    let text = page.text();
    assert!(text.contains("Precision study of m.onnx precision study 8 inputs"), "{text}");
    assert!(text.contains("tf32 not run: no CUDA device"), "{text}");
    assert!(
        !text.contains("runtimes differ") && !text.contains("Verdict") && !text.contains("verification differs"),
        "{text}"
    );
}

#[test]
fn tables_for_papers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut b = result("b & 50%", &json!({"fid": 2.0, "precision": {"value": 0.75, "ci95": [0.7, 0.8]}}));
    let mut other = result("c_1", &json!({"fd": 3.0}));
    other["protocol"]["name"] = json!("clean");
    other["extractors"]["features"] = json!({"name": "net_x", "path": "n.onnx", "sha256": "n", "dims": 64});
    other["deviations"] = json!([deviation("extractor", "samples")]);
    b["failed"] = json!({"kid": "too few"});
    let a = result(
        "a",
        &json!({"fid": {"value": 2.5, "ci95": [2.4, 2.6]}, "precision": 0.5, "kid": {"value": 0.001, "std": 0.0005}}),
    );
    write(dir, "r.json", &json!([a, b, other]));
    let table = |format: &str| d2o(dir, &["report", "r.json", "--format", format, "--out", "-"]).stdout;
    insta::assert_snapshot!("report_latex", table("latex"));
    insta::assert_snapshot!("report_markdown", table("markdown"));
    // The same table in a file and on the page.
    d2o(dir, &["report", "r.json", "--format", "latex", "--out", "t.tex"]);
    assert_eq!(fs::read_to_string(dir.join("t.tex")).unwrap(), table("latex"));
    let page = page_of(dir, &["r.json"]);
    let pre: Vec<&str> = page.elements.iter().filter(|e| e.name == "pre").map(|e| e.text.as_str()).collect();
    let all = table("latex");
    let (first, _) = all.split_once("\n\n% Not comparable").unwrap();
    assert!(pre.iter().any(|p| p.trim_end() == first), "{first}\n{pre:#?}");
    for args in [&["--images", "a=b"][..], &["--losses", "a=b"], &["--references", "b"]] {
        let outcome = attempt(dir, &[&["report", "r.json", "--format", "latex", "--out", "-"], args].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains("require `--format html`"), "{outcome}");
    }
}

#[test]
fn the_data_is_in_the_page() {
    use base64::Engine as _;
    let dir = tempfile::tempdir().unwrap();
    let results = [result("a", &json!({"fid": 2.5}))];
    let page = page_of_results(dir.path(), &results, &[]);
    let link = page.elements.iter().find(|e| e.attribute("download") == Some("evaluations.json")).unwrap();
    let data = link.attribute("href").unwrap().strip_prefix("data:application/json;base64,").unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
    let read: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read[0]["metrics"]["fid"]["value"], 2.5);
    assert!(page.elements.iter().any(|e| e.name == "pre" && e.text.as_bytes() == bytes), "the same text is shown");
    let text = page.text();
    assert!(text.contains("d2o evaluate a.npz") && text.contains("all stages 4.00 s"), "{text}");
}

#[test]
fn a_small_page() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = json!({"fid": {"value": 1.79, "ci95": [1.7, 1.9], "verified": true}, "recall": 0.6});
    page_of_results(dir.path(), &[result("one step", &metrics)], &["--title", "Small"]);
    let html = fs::read_to_string(dir.path().join("r.html")).unwrap();
    let (start, end) = (html.find("<style>").unwrap() + 7, html.find("</style>").unwrap());
    let without_style = format!("{}{}", &html[..start], &html[end..]);
    let (start, end) = (without_style.find(";base64,").unwrap() + 8, without_style.find("\">Download").unwrap());
    insta::with_settings!({filters => vec![(r"Made by d2o [0-9.]+", "Made by d2o VERSION.")]}, {
        insta::assert_snapshot!("report_page", format!("{}…{}", &without_style[..start], &without_style[end..]));
    });
}

/// The first two samples are images of the reference. They are evaluated with their nearest reference images.
#[test]
fn nearest_references_are_found_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), (38..40).chain(50..72));
    let network = ["--extractor", "lite0.onnx"];
    let evaluate = ["evaluate", "fake.npz", "--nearest", "12", "--title", "fake", "--bootstrap", "0"];
    let nearest = |reference: &str, out: &str, metrics: &str| -> Value {
        d2o(
            dir,
            &[
                &evaluate[..],
                &network,
                &["--metrics", metrics, "--ref", reference, "--json", out, "--overwrite", "--report", "e.html"],
            ]
            .concat(),
        );
        serde_json::from_slice(&fs::read(dir.join(out)).unwrap()).unwrap()
    };
    let found = nearest("real.npz", "a.json", "fid,fd-inf");
    let rows = found["nearest"]["samples"].as_array().unwrap();
    // Every second of 24 samples, 8 neighbours each.
    let samples: Vec<u64> = rows.iter().map(|r| r["sample"].as_u64().unwrap()).collect();
    assert_eq!(samples, (0..12).map(|i| 2 * i).collect::<Vec<_>>());
    assert!(rows.iter().all(|r| r["neighbours"].as_array().unwrap().len() == 8));
    let first = &rows[0]["neighbours"];
    let distances = |r: &Value| -> Vec<f64> {
        r["neighbours"].as_array().unwrap().iter().map(|n| n["distance"].as_f64().unwrap()).collect()
    };
    assert!(rows.iter().all(|r| distances(r).is_sorted()));
    // An image is nearest to itself. The distance is not exactly zero, because batches of other sizes round
    // differently.
    let found_first = distances(&rows[0]);
    assert!(first[0]["index"] == 38 && found_first[0] < 1e-3 && found_first[1] > 1e-2, "{first}");
    // `evaluate --report` has the images of both sets.
    let own = page::parse(&fs::read_to_string(dir.join("e.html")).unwrap());
    assert!(own.elements.iter().any(|e| e.attribute("alt") == Some("Reference image 38")));
    // The points of FD∞ are recorded, and the value is the intercept of the line.
    let line = &found["fd_infinity"];
    assert_eq!(line["sizes"].as_array().unwrap().len(), 15);
    assert_eq!((&line["sizes"][14], &line["intercept"]), (&24.into(), &found["metrics"]["fd_inf"]["value"]));
    assert!(own.text().contains("distance against the number of samples"));

    // Statistics with features record the digest of their images.
    d2o(dir, &[&["refs", "make", "real.npz", "--out", "ref.npz"][..], &network].concat());
    let again = nearest("ref.npz", "b.json", "fid");
    assert_eq!(again["nearest"]["samples"], found["nearest"]["samples"]);
    let mut real = batch::open(&dir.join("real.npz")).unwrap();
    assert_eq!(again["nearest"]["reference_sha256"], batch::content_sha256(real.as_mut()).unwrap());
    let page = page_of(dir, &["b.json", "--images", "fake=fake.npz", "--references", "real.npz"]);
    let shown = |alt: &str| page.elements.iter().any(|e| e.name == "img" && e.attribute("alt") == Some(alt));
    assert!(shown("Sample 2") && shown("Reference image 38"));
    let images = |page: &Page| page.elements.iter().filter(|e| e.name == "img").count();
    assert_eq!(images(&page), 1 + 12 * 9);
    // Without references the page names the option and shows the grid only.
    let bare = page_of(dir, &["b.json", "--images", "fake=fake.npz"]);
    assert_eq!(images(&bare), 1);
    assert!(bare.text().contains("--references REFERENCE-IMAGES"));

    // Images other than the measured ones are refused, and so are references that no result has.
    write_images(&dir.join("order.npz"), (0..40).rev());
    let refused = |args: &[&str], words: &str| {
        let outcome = attempt(dir, &[&["report"], args, &["--out", "x.html"]].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(words), "{outcome}");
    };
    let fake = ["b.json", "--images", "fake=fake.npz", "--references"];
    refused(&[&fake[..], &["order.npz"]].concat(), "does not contain the reference images of “fake” in the same order");
    refused(
        &["b.json", "--images", "fake=real.npz", "--references", "real.npz"],
        "does not contain the samples of “fake”",
    );
    write(dir, "none.json", &result("a", &json!({"fid": 2.5})));
    refused(&["none.json", "--references", "real.npz"], "`d2o evaluate --nearest N` records them");
    // A reference without features has no nearest images.
    d2o(dir, &[&["refs", "make", "real.npz", "--no-features", "--out", "bare.npz"][..], &network].concat());
    let outcome = attempt(dir, &[&evaluate[..], &network, &["--ref", "bare.npz"]].concat());
    assert!(outcome.code == 2 && outcome.stderr.contains("--nearest"), "{outcome}");
}

/// A page with everything it can contain, and long names.
fn full_page(dir: &Path) -> String {
    let long = "a-very-long-name-without-a-single-space-in-it-as-files-have-them-0123456789";
    write_images(&dir.join("real.npz"), 0..20);
    write_images(&dir.join("fake.npz"), 20..90);
    let hash = |name: &str| batch::content_sha256(batch::open(&dir.join(name)).unwrap().as_mut()).unwrap();
    let runs: Vec<Value> = (0..11)
        .map(|i| {
            let x = f64::from(i);
            let metrics = json!({
                "fd": {"value": 1234.567 - 100.0 * x, "ci95": [1200.0 - 100.0 * x, 1300.0 - 100.0 * x]}, "is": {"value": 1.5 + x, "std": 0.25},
                "precision": {"value": 0.05 * x, "ci95": [0.04 * x, 0.06 * x]}, "recall": 0.09 * x, "kd": {"value": 1e-4 * x, "std": 2e-5}, "fd_inf": 900.0 - x,
            });
            let title = if i % 3 == 0 { format!("{long}-{i}") } else { format!("run number {i}") };
            let mut run = result(&title, &metrics);
            run["extractors"]["features"]["name"] = json!("tf_efficientnet_lite0_with_a_long_name");
            run["extractors"]["features"]["verified"] = Value::Null;
            run["deviations"] = json!([deviation("extractor", "samples")]);
            run["warnings"] = json!([format!("{long} {long}")]);
            run["fd_infinity"] = json!({"sizes": [50, 100, 500], "distances": [990.0, 950.0, 910.0], "intercept": 900.0 - x, "slope": 4500.0});
            if i == 10 {
                run["samples"]["count"] = json!(3);
                run["protocol"][long] = json!(long);
            }
            if i == 0 {
                let class = |c: i32| json!({"class": c, "samples": 5, "reference": 7, "metrics": {"fd": {"value": 3.0 * f64::from(c)}, "precision": {"value": 0.5}}});
                run["per_class"] = (0..40).map(class).collect();
                run["samples"]["sha256"] = json!(hash("fake.npz"));
                let neighbours: Vec<Value> = (0..8).map(|n| json!({"index": n, "distance": 12.5})).collect();
                run["nearest"] = json!({"role": "features", "reference_sha256": hash("real.npz"), "samples": [{"sample": 3, "neighbours": neighbours}]});
            }
            run
        })
        .collect();
    let mut study = verification();
    study["precisions"] = json!([{"precision": "fp32", "runtime": "ort-cpu", "speed": 10.0}, {"precision": "tf32", "skipped": "no CUDA device"}]);
    let mut verdict = verification();
    verdict["profile"][0]["node"] = json!(long);
    verdict["divergence"][0]["node"] = json!(long);
    write(dir, "all.json", &json!([&runs[..], &[verdict, study]].concat()));
    let mean = |v: f64| json!({"num": 1, "mean": v});
    let line = |i: i32| {
        let x = f64::from(i);
        json!({"Progress/kimg": mean(1000.0 * x), "Loss/G/loss": mean(2.0 + (x * 1.3).sin()), "Loss/D/loss": mean(1.0), "Loss/D/r1_loss": mean(10.0 / x),
               "Metrics/fd": {"num": 1, "mean": 500.0 / x, "ci95": [490.0 / x, 510.0 / x]}, "snapshot": format!("{long}.safetensors"), "evaluation": runs[0]})
    };
    let lines: String = (1..60).map(|i| format!("{}\n", line(i))).collect();
    fs::write(dir.join("log.jsonl"), lines).unwrap();
    let (images, log) = (format!("{long}-0=fake.npz"), format!("{long}=log.jsonl"));
    let args = [
        "all.json",
        "--images",
        "real=real.npz",
        "--images",
        &images,
        "--references",
        "real.npz",
        "--losses",
        &log,
        "--losses",
        "other=log.jsonl",
    ];
    page_of(dir, &[&args[..], &["--smooth", "3000", "--title", "Everything a page can hold"]].concat());
    fs::read_to_string(dir.join("r.html")).unwrap()
}

#[test]
fn the_page_fits_phones_and_screens() {
    let dir = tempfile::tempdir().unwrap();
    let html = full_page(dir.path());
    let pages = [
        html.clone(),
        // Pages with faults that the measurement must find.
        html.replace("<main id=\"main\">", "<main id=\"main\"><p style=\"width:500px\">wide</p>"),
        html.replace(
            "<main id=\"main\">",
            "<main id=\"main\"><h2 style=\"width:1em;overflow-wrap:anywhere\">a column of letters</h2>",
        ),
    ];
    let Some(found) = pages.iter().map(|page| faults(dir.path(), page)).collect::<Option<Vec<_>>>() else { return };
    assert!(found[0].is_empty(), "{:#?}", found[0]);
    assert!(found[1].iter().any(|f| f.starts_with("360 px: the page scrolls sideways")), "{:#?}", found[1]);
    assert!(found[1].iter().all(|f| f.starts_with("360 px: ")), "{:#?}", found[1]);
    for width in WIDTHS {
        let column = format!("{width} px: a column of letters: <h2 class=\"\"> a column of letters");
        assert!(found[2].contains(&column), "{:#?}", found[2]);
    }
}

/// Faults in the layout of `html`, found by the Chromium that `D2O_CHROMIUM` names, or else by Kaleido's. `None` if
/// both are missing and tests may be skipped.
fn faults(dir: &Path, html: &str) -> Option<Vec<String>> {
    let script = include_str!("common/layout.js");
    if let Some(chromium) = std::env::var_os("D2O_CHROMIUM") {
        let page = serde_json::to_string(html).unwrap().replace("</", "<\\/");
        let harness = format!(
            "<!doctype html><body><script>{script}\nmeasure({page}, {WIDTHS:?}).then(function (found) {{\n\
             document.body.textContent = \"FAULTS\" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + \"END\"; }});</script>"
        );
        fs::write(dir.join("harness.html"), harness).unwrap();
        let mut command = Command::new(chromium);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
        ]);
        command.args(["--disable-sync", "--virtual-time-budget=60000", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
        let dom = first_line(command.arg(dir.join("harness.html")), "", |line| line.contains("FAULTS"));
        let encoded = dom.split("FAULTS").nth(1).unwrap().split("END").next().unwrap();
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        return Some(serde_json::from_slice(&decoded).unwrap());
    }
    let kaleido = test_support::kaleido()?;
    // Kaleido loads this script as its drawing library, and calls it to draw a figure.
    let draw = format!(
        "{script}\nwindow.Plotly = {{version: \"2.0.0\", toImage: function (figure) {{\n\
         return measure(figure.data[0].html, {WIDTHS:?}).then(function (found) {{ return \"data:image/svg+xml,\" + JSON.stringify(found); }}); }}}};"
    );
    fs::write(dir.join("draw.js"), draw).unwrap();
    let figure =
        json!({"data": {"data": [{"html": html}], "layout": {}}, "format": "svg", "width": 9, "height": 9, "scale": 1});
    let mut command = Command::new(kaleido.join("bin/kaleido"));
    command.current_dir(&kaleido).env("LD_LIBRARY_PATH", kaleido.join("lib"));
    command.env("FONTCONFIG_PATH", kaleido.join("etc/fonts")).env("XDG_DATA_HOME", kaleido.join("xdg"));
    command.arg("plotly").arg(format!("--plotlyjs=file://{}", dir.join("draw.js").display()));
    command.args([
        "--disable-gpu",
        "--no-sandbox",
        "--disable-breakpad",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
    ]);
    let answer = first_line(&mut command, &format!("{figure}\n"), |line| {
        line.contains("\"result\":\"") || !line.contains("\"code\": 0")
    });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let found =
        answer["result"].as_str().unwrap_or_else(|| panic!("{answer}")).strip_prefix("data:image/svg+xml,").unwrap();
    Some(serde_json::from_str(found).unwrap())
}

/// The first line that `command` prints and that is `wanted`, after it has read `input`. The command is killed then.
fn first_line(command: &mut Command, input: &str, wanted: fn(&str) -> bool) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
    });
    stdin.write_all(input.as_bytes()).unwrap();
    let next = || lines.recv_timeout(Duration::from_secs(120));
    let line = loop {
        match next() {
            Ok(line) if wanted(&line) => break Some(line),
            Ok(_) => {}
            Err(_) => break None,
        }
    };
    drop(stdin);
    child.kill().ok();
    child.wait().unwrap();
    drop(lines);
    reader.join().unwrap();
    line.expect("the browser gave no answer within two minutes")
}

#[test]
fn texts_stand_out_from_what_is_behind_them() {
    /// Least contrast of texts and of graphics in WCAG 2.1.
    const TEXT: f64 = 4.5;
    const GRAPHICS: f64 = 3.0;
    let dir = tempfile::tempdir().unwrap();
    page_of_results(dir.path(), &[result("a", &json!({"fid": 1.0}))], &[]);
    let html = fs::read_to_string(dir.path().join("r.html")).unwrap();
    let themes: Vec<&str> = html.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
    assert_eq!(themes.len(), 3, "light, dark, print");
    for theme in themes {
        let colour = |name: &str| -> [f64; 3] {
            let text = theme.split(&format!("--{name}: #")).nth(1).unwrap_or_else(|| panic!("no --{name} in {theme}"));
            [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&text[at..at + 2], 16).unwrap()) / 255.0)
        };
        let luminance = |name: &str| {
            let linear = |v: f64| if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) };
            let [r, g, b] = colour(name).map(linear);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let contrast = |a: &str, b: &str| {
            let [x, y] = [luminance(a), luminance(b)];
            (x.max(y) + 0.05) / (x.min(y) + 0.05)
        };
        let mut weak = Vec::new();
        let mut check = |front: &str, back: &str, least: f64| {
            let found = contrast(front, back);
            if found < least {
                weak.push(format!("--{front} on --{back}: {found:.2}"));
            }
        };
        for back in ["bg", "card", "good-bg", "warn-bg", "bad-bg", "plain-bg", "best-bg"] {
            check("text", back, TEXT);
        }
        for front in ["muted", "link"] {
            check(front, "bg", TEXT);
            check(front, "card", TEXT);
        }
        for kind in ["good", "warn", "bad"] {
            check(kind, &format!("{kind}-bg"), TEXT);
            check(kind, "bg", TEXT);
            check(kind, "card", TEXT);
        }
        check("good", "best-bg", TEXT);
        check("muted", "best-bg", TEXT);
        check("strong-line", "bg", GRAPHICS);
        (0..8).for_each(|i| check(&format!("c{i}"), "bg", GRAPHICS));
        (0..8).for_each(|i| check(&format!("c{i}"), "card", GRAPHICS));
        assert!(weak.is_empty(), "{weak:#?}");
        let colours: BTreeSet<String> = (0..8).map(|i| format!("{:?}", colour(&format!("c{i}")))).collect();
        assert_eq!(colours.len(), 8);
    }
}
