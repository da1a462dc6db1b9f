//! `d2o generate`: the pixels of the originals, and the same bytes after every kill.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use d2o_converters::weights::SplitMix64;
use d2o_onnx::graph::{Dim, ElementType, GraphBuilder};
use d2o_onnx::metadata::{Kind, Metadata};
use d2o_refs::npz::{Npz, NpzWriter};
use fs_err as fs;
use ndarray::ArrayD;
use test_support::{Outcome, golden_dir, run};

const D2O: &str = env!("CARGO_BIN_EXE_d2o");

fn d2o(dir: &Path, args: &[&str]) -> Outcome {
    let outcome = run(Path::new(D2O), dir, args);
    assert_eq!(outcome.code, 0, "d2o {}: {outcome}", args.join(" "));
    outcome
}

fn export(dir: &Path, checkpoint: &str, kind: &str, out: &str) {
    let source = golden_dir().join(format!("{checkpoint}.safetensors")).display().to_string();
    let sigma = if out.starts_with("sid") { "2.5" } else { "80" };
    let mut words = vec!["export", &source, "--kind", kind, "--out", out, "--no-check"];
    words.extend(if kind == "one-step" { vec!["--sigma-max", sigma] } else { vec![] });
    d2o(dir, &words);
}

/// Writes a graph that returns its input, `dims` for each image.
fn identity(path: &Path, [input, output, kind]: [&str; 3], element: ElementType, dims: &[usize]) {
    let mut g = GraphBuilder::new("g");
    let dims: Vec<Dim> = std::iter::once(Dim::Batch).chain(dims.iter().map(|n| Dim::Known(*n))).collect();
    let x = g.input(input, element, &dims).unwrap();
    g.output(output, &x).unwrap();
    g.describe(&Metadata { kind: Kind::named(kind), ..Metadata::default() });
    d2o_onnx::write::write(&g.finish().unwrap(), path).unwrap();
}

#[test]
fn sizes_that_a_graph_only_claims_are_refused_before_they_are_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &[&str], text: &str| {
        let outcome = run(Path::new(D2O), dir.path(), words);
        let told = outcome.stderr.contains(text);
        assert!(outcome.code == 2 && told && !outcome.stderr.contains("panicked"), "{words:?}: {outcome}");
    };
    let generator = ["latents", "images", "one-step"];
    for (dims, text) in [
        ([3, 1 << 20, 1 << 20], "`latents`: expected at most 12582912 values for an image"),
        ([3, 1 << 40, 1 << 40], "`latents`: expected at most 12582912 values for an image"),
        ([3, 0, 8], "images of 8 × 0 pixels"),
    ] {
        identity(&dir.path().join("x.onnx"), generator, ElementType::F32, &dims);
        for provider in ["cpu", "tract"] {
            refused(&["generate", "x.onnx", "--provider", provider, "--seeds", "0-3", "--out", "s.npz"], text);
        }
    }
    identity(&dir.path().join("x.onnx"), ["x", "y", "other"], ElementType::F32, &[1 << 40, 1 << 40]);
    refused(&["verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu"], "`x`: expected at most 12582912 values");
    identity(&dir.path().join("x.onnx"), ["images_u8", "features", "features"], ElementType::U8, &[1 << 40]);
    identity(&dir.path().join("g.onnx"), generator, ElementType::F32, &[3, 8, 8]);
    d2o(dir.path(), &["generate", "g.onnx", "--provider", "cpu", "--seeds", "0-3", "--out", "s.npz"]);
    let refs = ["refs", "make", "s.npz", "--extractor", "x.onnx", "--out", "r.npz"];
    refused(&refs, "`features`: expected at most 8192 values, found 1099511627776");
}

/// Fails unless at most one value in a thousand differs, by at most one step: rounding can move a value across the
/// boundary of a quantiser step.
fn equal_but_for_rounding(name: &str, expected: &ArrayD<f64>, found: &ArrayD<f64>) {
    let differences = || expected.iter().zip(found).map(|(e, f)| (e - f).abs()).filter(|d| *d > 0.0);
    let (differ, most, all) = (differences().count(), differences().fold(0.0, f64::max), expected.len());
    println!("{name}: {differ} of {all} values differ, by at most {most}");
    assert!(
        all > 0 && differ * 1000 <= all && most <= 1.0,
        "{name}: {differ} of {all} values differ, by at most {most}"
    );
}

/// Images of the golden networks by the originals' generate.py; see tests/data/gen/generate.py.
#[test]
fn images_are_the_originals() {
    const CHURN: [&str; 8] = ["--s-churn", "40", "--s-min", "0.05", "--s-max", "50", "--s-noise", "1.003"];
    const ABLATION: [&str; 10] =
        ["--solver", "euler", "--disc", "vp", "--schedule", "vp", "--scaling", "vp", "--sigma-max", "0.6"];
    let cases: [(&str, &str, &str, &[&str]); 6] = [
        ("edm-heun-cond", "edm-ddpmpp-cond", "denoiser", &[]),
        ("edm-churn-uncond", "edm-ncsnpp-uncond", "denoiser", &CHURN),
        ("edm-ablation-vp", "vp-ddpmpp", "denoiser", &ABLATION),
        ("d2o-one-step-uncond", "d2o-ncsnpp-uncond", "one-step", &[]),
        ("d2o-one-step-class", "d2o-adm-cond", "one-step", &["--class", "3"]),
        ("sid-cond", "edm-adm-cond", "one-step", &["--sampler", "sid"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, checkpoint, kind, options) in cases {
        let (graph, out) = (format!("{name}.onnx"), format!("{name}.npz"));
        export(dir.path(), checkpoint, kind, &graph);
        let words = ["generate", &graph, "--seeds", "0-11", "--provider", "cpu", "--out", &out];
        d2o(dir.path(), &[&words[..], options].concat());
        let mut theirs = Npz::open(&golden_dir().parent().unwrap().join("generate").join(&out)).unwrap();
        let mut ours = Npz::open(&dir.path().join(&out)).unwrap();
        let (expected, found) = (theirs.f64("images").unwrap(), ours.f64("arr_0").unwrap());
        assert_eq!(expected.shape(), found.shape(), "{name}");
        equal_but_for_rounding(name, &expected, &found);
        if theirs.contains("arr_1") {
            let forced = options.contains(&"--class");
            let drawn = theirs.i64("arr_1").unwrap();
            assert_eq!(ours.i64("arr_1").unwrap(), if forced { vec![3; drawn.len()] } else { drawn }, "{name}");
        }
    }
}

#[test]
fn latents_are_saved_and_read() {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), "edm-ddpmpp-cond", "denoiser", "x.onnx");
    let churn = ["generate", "x.onnx", "--num-steps", "4", "--s-churn", "2", "--out"];
    d2o(dir.path(), &[&churn[..], &["a.npz", "--seeds", "3-9,1", "--save-latents", "l.npz"]].concat());
    d2o(dir.path(), &[&churn[..], &["b.npz", "--latents", "l.npz"]].concat());
    d2o(dir.path(), &[&churn[..], &["c.npz", "--latents", "l.npz", "--seeds", "1,5"]].concat());
    let images = |name: &str| Npz::open(&dir.path().join(name)).unwrap().f64("arr_0").unwrap();
    let (a, b, c) = (images("a.npz"), images("b.npz"), images("c.npz"));
    assert_eq!(a, b);
    let row = |array: &ArrayD<f64>, i: usize| array.index_axis(ndarray::Axis(0), i).to_owned();
    assert_eq!([row(&c, 0), row(&c, 1)], [row(&a, 7), row(&a, 2)]);
    let missing =
        run(Path::new(D2O), dir.path(), &[&churn[..], &["d.npz", "--latents", "l.npz", "--seeds", "2"]].concat());
    assert!(missing.code == 2 && missing.stderr.contains("no latent for seed 2"), "{missing}");
}

/// Latent vectors: NumPy's for each seed, or the original's inputs, with the images it made of them.
#[test]
fn stylegan2_draws_from_vectors() {
    let data = golden_dir().parent().unwrap().join("stylegan2");
    let dir = tempfile::tempdir().unwrap();
    let source = data.join("skip-cond.pkl").display().to_string();
    d2o(dir.path(), &["export", &source, "--kind", "one-step", "--out", "g.onnx", "--no-check"]);
    let draw = ["generate", "g.onnx", "--provider", "cpu", "--out"];
    let options = ["--seeds", "0-4,5", "--class", "1", "--save-latents", "l.npz", "--grid", "g.png"];
    d2o(dir.path(), &[&draw[..], &["a.npz"], &options].concat());
    let latents = Npz::open(&dir.path().join("l.npz")).unwrap().f32("latents").unwrap();
    assert_eq!(latents.shape(), [6, 8]);
    // np.random.RandomState(5).randn(8)[:4]
    let expected = [0.441_227_5, -0.330_870_15, 2.430_771, -0.252_092_12];
    assert!(
        latents.index_axis(ndarray::Axis(0), 5).iter().zip(expected).all(|(f, e): (&f32, f32)| (f - e).abs() < 1e-6),
        "{latents}"
    );
    d2o(dir.path(), &[&draw[..], &["b.npz", "--latents", "l.npz"]].concat());
    let images = |name: &str| Npz::open(&dir.path().join(name)).unwrap().f64("arr_0").unwrap();
    assert_eq!(images("a.npz"), images("b.npz"));

    let mut theirs = Npz::open(&data.join("skip-cond.npz")).unwrap();
    let classes = theirs.f32("labels").unwrap();
    let labels: Vec<i64> = classes.outer_iter().map(|row| row.iter().position(|v| *v == 1.0).unwrap() as i64).collect();
    let mut given = NpzWriter::create(&dir.path().join("z.npz")).unwrap();
    given.f32("latents", theirs.f32("z").unwrap().view()).unwrap();
    given.i64("labels", &labels).unwrap();
    given.finish().unwrap();
    d2o(dir.path(), &[&draw[..], &["c.npz", "--latents", "z.npz"]].concat());
    let expected = theirs.f64("one_step").unwrap().permuted_axes(vec![0, 2, 3, 1]);
    let pixels = expected.mapv(|v| (127.5 * v + 128.0).clamp(0.0, 255.0).floor());
    equal_but_for_rounding("StyleGAN2", &pixels, &images("c.npz"));
    let wrong = run(Path::new(D2O), dir.path(), &[&draw[..], &["d.npz", "--seeds", "0", "--sampler", "heun"]].concat());
    assert!(wrong.code == 2 && wrong.stderr.contains("kind denoiser"), "{wrong}");

    // In f16 styles and weights are scaled so that the sums fit. The export measures the difference.
    let half = run(Path::new(D2O), dir.path(), &["export", &source, "--precision", "fp16", "--out", "half.onnx"]);
    assert!(half.code == 0 && half.stderr.contains("f16: `images` differs by"), "{half}");
    d2o(dir.path(), &["generate", "half.onnx", "--provider", "cpu", "--latents", "z.npz", "--out", "half.npz"]);
    let most = pixels.iter().zip(&images("half.npz")).fold(0.0_f64, |m, (e, f)| m.max((e - f).abs()));
    assert!(most <= 2.0, "{most} steps");
}

#[test]
fn options_of_another_sampler_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), "edm-ddpmpp-cond", "denoiser", "x.onnx");
    for (options, text) in [
        (&["--ts", "0,1"][..], "--ts"),
        (&["--sampler", "consistency", "--ts", "0,40"], "--ts"),
        (&["--sampler", "one-step", "--num-steps", "4"], "--num-steps"),
        (&["--alpha", "0.5"], "--alpha"),
    ] {
        let words = [&["generate", "x.onnx", "--seeds", "0", "--out", "a.npz"], options].concat();
        let outcome = run(Path::new(D2O), dir.path(), &words);
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{options:?}: {outcome}");
    }
}

/// Every file below `path` with its bytes, or the one file.
fn bytes(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(at) = open.pop() {
        if at.is_dir() {
            open.extend(fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()));
        } else {
            found.insert(at.strip_prefix(path).unwrap().to_owned(), fs::read(&at).unwrap());
        }
    }
    found
}

/// Waits until the run in `partial` has written its first images, or has ended.
fn wait_for_images(child: &mut Child, partial: &Path) {
    let started = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("000000000+"))
    };
    while child.try_wait().unwrap().is_none() && !fs::read_dir(partial).is_ok_and(|mut d| d.any(started)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills `d2o generate` `kills` times, first when there are images and then at random times, and resumes it. The
/// outputs must equal those of an undisturbed run.
fn killed_and_resumed(images: usize, kills: u32) {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), "d2o-adm-cond", "one-step", "x.onnx");
    let seeds = format!("0-{}", images - 1);
    let mut random = SplitMix64::for_path(1, "kills");
    for out in ["s.npz", "s.h5", "s.zip", "s"] {
        let words = |name: &str| {
            let words = ["generate", "x.onnx", "--provider", "cpu", "--batch", "32", "--out", name, "--seeds", &seeds];
            let more: &[&str] = if out == "s" { &["--subdirs"] } else { &[] };
            [&words, more].concat().iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()
        };
        fs::create_dir(dir.path().join("whole")).unwrap();
        let start = Instant::now();
        d2o(dir.path(), &words(&format!("whole/{out}")).iter().map(String::as_str).collect::<Vec<_>>());
        let whole = start.elapsed();
        let expected = bytes(&dir.path().join("whole").join(out));
        fs::create_dir(dir.path().join("cut")).unwrap();
        let target = dir.path().join("cut").join(out);
        let (mut killed, mut finished, mut resumed) = (0, 0, 0);
        while killed < kills || finished == 0 {
            let mut child = Command::new(D2O)
                .args(words(&format!("cut/{out}")))
                .arg("--resume")
                .current_dir(dir.path())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            if killed == 0 {
                wait_for_images(&mut child, &dir.path().join("cut").join(format!("{out}.partial")));
                child.kill().unwrap();
            } else if killed < kills {
                let share = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
                std::thread::sleep(whole.mul_f64(share * 0.6).max(Duration::from_millis(1)));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            resumed += u32::from(String::from_utf8_lossy(&output.stderr).contains("are already done"));
            if output.status.code().is_none() {
                killed += 1;
                continue;
            }
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            finished += 1;
            assert!(bytes(&target) == expected, "{out}: other bytes after {killed} kills");
            assert_eq!(fs::read_dir(dir.path().join("cut")).unwrap().count(), 1, "{out}: something is left over");
            if killed < kills {
                if target.is_dir() { fs::remove_dir_all(&target).unwrap() } else { fs::remove_file(&target).unwrap() }
            }
        }
        println!(
            "{out}: {images} images, {killed} kills, {resumed} resumed runs found images, {finished} finished: equal bytes"
        );
        assert!(resumed > 0, "{out}: no run was killed late enough to leave images");
        for folder in ["whole", "cut"] {
            fs::remove_dir_all(dir.path().join(folder)).unwrap();
        }
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    killed_and_resumed(600, 2);
}

/// `cargo test --features train --test generate -- --ignored --nocapture`; its last result is in docs/generate.md.
#[test]
#[ignore = "takes minutes"]
fn twenty_kills_leave_the_same_bytes() {
    killed_and_resumed(2000, 20);
}
