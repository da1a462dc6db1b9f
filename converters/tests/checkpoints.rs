//! Readers on the files of `tests/data/checkpoints`, whole, cut short and damaged.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use d2o_converters::Error;
use d2o_converters::checkpoint::{Architecture, Checkpoint, Dtype, Format, Network, TensorSource};
use d2o_converters::export::{self, Options};
use fs_err as fs;
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/checkpoints").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// What the generator filled the tensor `name` with.
fn expected(name: &str, count: usize) -> Vec<f32> {
    let sum: usize = name.bytes().map(usize::from).sum();
    (0..count).map(|i| ((37 * i + sum) % 97) as f32 / 64.0 - 0.75).collect()
}

fn columns(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|c| values.iter().skip(c).step_by(width).copied()).collect()
}

#[test]
fn an_edm_pickle_is_a_denoiser_with_its_weights() {
    let checkpoint = open("edm.pkl");
    assert_eq!(checkpoint.format, Format::Pickle);
    let names: Vec<_> = checkpoint.networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["ema"]);
    let network = checkpoint.network("ema").unwrap();
    let Architecture::Denoiser(config) = &network.architecture else { panic!("{:?}", network.architecture) };
    assert_eq!((config.class(), config.img_resolution, config.label_dim), ("EDMPrecond", 8, 2));
    assert_eq!(config.init_kwargs()["dropout"], 0.125);
    for name in network.tensors.names() {
        let count = network.tensors.info(&name).unwrap().dims.iter().product();
        assert_eq!(network.tensors.read_f32(&name).unwrap(), expected(&name, count), "{name}");
    }
    let exported = export::denoiser(network, &Options::default()).unwrap();
    assert_eq!(exported.report.tensors, network.tensors.names().len());
    assert!(checkpoint.network("net").unwrap_err().to_string().contains("[\"ema\"]"));
}

/// `archive` with an empty entry `first` before its own, and with the records of zip64 that torch adds although nothing needs them.
fn with_zip64_records(archive: &Path, out: &Path, first: &str) {
    use std::io::Cursor;

    let mut old = zip::ZipArchive::new(Cursor::new(fs::read(archive).unwrap())).unwrap();
    let mut new = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    new.start_file(first, stored).unwrap();
    for i in 0..old.len() {
        new.raw_copy_file(old.by_index_raw(i).unwrap()).unwrap();
    }
    let bytes = new.finish().unwrap().into_inner();
    let end = bytes.len() - 22;
    let field = |at: usize, width: usize| {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(&bytes[end + at..end + at + width]);
        wide
    };
    let (count, size, offset) = (field(10, 2), field(12, 4), field(16, 4));
    let record =
        [b"PK\x06\x06", &44_u64.to_le_bytes()[..], &[45, 0, 45, 0], &[0; 8], &count, &count, &size, &offset].concat();
    let locator = [b"PK\x06\x07", &[0; 4][..], &(end as u64).to_le_bytes(), &1_u32.to_le_bytes()].concat();
    fs::write(out, [&bytes[..end], &record, &locator, &bytes[end..]].concat()).unwrap();
}

/// The records are 76 bytes long, and so is the directory's first header if its name has 30 bytes: a parser that guesses where the archive
/// begins took one for the other.
#[test]
fn zip64_records_as_long_as_the_first_header_do_not_shift_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.pt");
    for length in 28..33 {
        with_zip64_records(&fixture("state.pt"), &path, &format!("state/{}", "x".repeat(length - 6)));
        let (found, expected) = (Checkpoint::open(&path).unwrap(), open("state.pt"));
        assert_eq!(found.tensors.names(), expected.tensors.names(), "a name of {length} bytes");
    }
}

#[test]
fn every_protocol_gives_the_same_tensors() {
    for protocol in 2..=5 {
        let checkpoint = open(&format!("pair-protocol{protocol}.pkl"));
        let tensors = &checkpoint.network("ema").unwrap().tensors;
        assert_eq!(tensors.names(), ["rows", "left.weight", "right.weight"], "protocol {protocol}");
        let values = expected("weight", 6);
        assert_eq!(tensors.info("rows").unwrap().dims, [3, 2]);
        assert_eq!(tensors.read_f32("rows").unwrap(), columns(&values, 3));
        assert_eq!(tensors.read_f32("left.weight").unwrap(), values);
        assert_eq!(tensors.read_f32("right.weight").unwrap(), values);
    }
}

#[test]
fn state_dicts_of_both_layouts_give_every_type_and_view() {
    for (file, format) in
        [("state.pt", Format::TorchZip), ("state-legacy.pth", Format::TorchLegacy), ("wrapped.pt", Format::TorchZip)]
    {
        let checkpoint = open(file);
        assert_eq!(checkpoint.format, format);
        let t = &checkpoint.network("ema").unwrap().tensors;
        let is = |name: &str, dtype: Dtype, dims: &[usize], values: &[f32]| {
            let info = t.info(name).unwrap_or_else(|| panic!("{file}: {name} of {:?}", t.names()));
            assert_eq!((info.dtype, info.dims.as_slice()), (dtype, dims), "{file}: {name}");
            assert_eq!(t.read_f32(name).unwrap(), values, "{file}: {name}");
        };
        for (name, dtype, dims) in [
            ("f32", Dtype::F32, &[2, 3][..]),
            ("f64", Dtype::F64, &[3]),
            ("f16", Dtype::F16, &[2, 2]),
            ("bf16", Dtype::BF16, &[5]),
            ("scalar", Dtype::F32, &[]),
        ] {
            is(name, dtype, dims, &expected(name, dims.iter().product()));
        }
        is("i64", Dtype::I64, &[4], &[-2.0, -1.0, 0.0, 1.0]);
        is("u8", Dtype::U8, &[3], &[0.0, 1.0, 2.0]);
        is("bool", Dtype::Bool, &[2], &[1.0, 0.0]);
        is("empty", Dtype::F32, &[0, 3], &[]);
        let base = expected("base", 24);
        is("base", Dtype::F32, &[4, 6], &base);
        is("base.columns", Dtype::F32, &[6, 4], &columns(&base, 6));
        is("base.part", Dtype::F32, &[2, 3], &[&base[8..11], &base[14..17]].concat());
        is("base.even", Dtype::F32, &[10], &base.iter().skip(4).step_by(2).copied().collect::<Vec<_>>());
    }
}

#[test]
fn torchscript_attributes_become_a_state_dict() {
    let checkpoint = open("script.pt");
    assert_eq!(checkpoint.format, Format::TorchScript);
    let t = &checkpoint.network("ema").unwrap().tensors;
    let mut names = t.names();
    names.sort();
    assert_eq!(names, ["blocks.0.bias", "blocks.0.weight", "inner.mean", "inner.weight"]);
    assert_eq!(t.info("inner.weight").unwrap().dtype, Dtype::F16);
    for name in names {
        let count = t.info(&name).unwrap().dims.iter().product();
        assert_eq!(t.read_f32(&name).unwrap(), expected(&name, count), "{name}");
    }
}

#[test]
fn constants_of_a_graph_are_read() {
    let checkpoint = open("graph.pb");
    assert_eq!(checkpoint.format, Format::GraphDef);
    let t = &checkpoint.tensors;
    assert_eq!(t.names(), ["conv/conv2d_params", "sizes", "sub/y"]);
    assert_eq!(t.info("conv/conv2d_params").unwrap().dims, [2, 3, 4, 5]);
    assert_eq!(t.read_f32("conv/conv2d_params").unwrap(), expected("conv/conv2d_params", 120));
    assert_eq!(t.read_f32("sizes").unwrap(), [299.0, 299.0]);
    assert_eq!(t.read_f32("sub/y").unwrap(), [128.0]);
}

const FIXTURES: [&str; 7] =
    ["pair-protocol2.pkl", "pair-protocol5.pkl", "state.pt", "state-legacy.pth", "wrapped.pt", "script.pt", "graph.pb"];

fn read_all(bytes: &[u8], dir: &Path) -> Result<usize, Error> {
    let path = dir.join("x");
    fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path)?;
    let read = |n: &Network| {
        n.tensors.names().iter().map(|t| n.tensors.read_f32(t).map(|v| v.len())).sum::<Result<usize, _>>()
    };
    checkpoint.networks.iter().map(read).sum()
}

#[test]
fn files_cut_short_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let whole = fs::read(fixture(name)).unwrap();
        assert!(read_all(&whole, dir.path()).is_ok());
        // A graph without its last nodes is a graph.
        let step = if name == "graph.pb" { whole.len() } else { whole.len() / 97 };
        for keep in (0..whole.len() - 1).step_by(step) {
            assert!(read_all(&whole[..keep], dir.path()).is_err(), "{name} opens when cut at {keep}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_files_give_a_result(file in 0..FIXTURES.len(), at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = fs::read(fixture(FIXTURES[file])).unwrap();
        let at = at.index(whole.len());
        for (place, byte) in whole[at..].iter_mut().zip(&bytes) {
            *place = *byte;
        }
        let limit = whole.len();
        if let Ok(elements) = read_all(&whole, dir.path()) {
            // A view takes no more elements than its storage has bytes; storages may be shared.
            prop_assert!(elements <= limit * 16, "{elements} elements from {limit} bytes");
        }
    }
}

fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    read_all(bytes, dir.path()).unwrap_err().to_string()
}

/// `GLOBAL module name`.
fn global(name: &str) -> Vec<u8> {
    let (module, member) = name.rsplit_once('.').unwrap();
    format!("c{module}\n{member}\n").into_bytes()
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &u32::try_from(value.len()).unwrap().to_le_bytes()[..], value.as_bytes()].concat()
}

/// A pickle of a module object: class `kind`, this state.
fn module(state: &[u8]) -> Vec<u8> {
    [&global("torch.nn.modules.container.ModuleDict")[..], b")\x81", state, b"b"].concat()
}

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

#[test]
fn hostile_pickles_name_opcode_and_offset() {
    let system = pickle(&[&global("os.system")[..], &text("true"), b"\x85R"].concat());
    let message = refused(&system);
    assert!(message.contains("opcode REDUCE (0x52) at byte 23") && message.contains("os.system"), "{message}");
    let nested = pickle(&[&b"}"[..], &text("ema"), &global("builtins.eval"), b"(", &text("1"), b"tRs"].concat());
    assert!(refused(&nested).contains("builtins.eval"));
    assert!(refused(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.").contains("opcode BINBYTES8 (0x8e) at byte 2"));
    assert!(refused(&pickle(b"K\x01r\xff\xff\xff\xff")).contains("memo index"));
    assert!(refused(&[&b"\x80\x02"[..], &b"(".repeat(1 << 16)].concat()).contains("open marks"));
    assert!(refused(&pickle(b"K\x01K\x02a")).contains("a list or set"));
    assert!(refused(&pickle(b"K\x07")).contains("a module or a dict of tensors, found a number"));
    assert!(refused(b"hello, world").contains("start of file"));
    assert!(refused(b"").contains("an empty file"));
}

#[test]
fn modules_that_nest_without_end_or_share_without_bound_are_refused() {
    // A module that is its own child.
    let own = [
        &global("torch.nn.modules.container.ModuleDict")[..],
        b")\x81q\x00}",
        &text("_modules"),
        b"}",
        &text("a"),
        b"h\x00ssb",
    ];
    assert!(refused(&pickle(&own.concat())).contains("modules"));
    // Forty levels, each holding the one below twice: 2^40 modules if they were expanded.
    let mut body = module(&[&b"}"[..], &text("_modules"), b"}s"].concat());
    for _ in 0..40 {
        body.extend(b"q\x000");
        let pair = [&text("a")[..], b"h\x00", &text("b"), b"h\x00"].concat();
        body.extend(module(&[&b"}"[..], &text("_modules"), b"}(", &pair, b"us"].concat()));
    }
    assert!(refused(&pickle(&body)).contains("at most 65536 modules"));
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let whole = fs::read(fixture("state.pt")).unwrap();
    // Offset, sizes and strides of `base.part`: K\x08, K\x02K\x03\x86, K\x06K\x01\x86.
    let at = whole.windows(2).enumerate().filter(|(_, w)| *w == b"K\x08").map(|(i, _)| i);
    let mut failed = 0;
    for i in at {
        for (place, value) in [(1, 0x16), (1, 0xff)] {
            let mut bytes = whole.clone();
            bytes[i + place] = value;
            let dir = tempfile::tempdir().unwrap();
            if let Err(e) = read_all(&bytes, dir.path()) {
                failed += usize::from(e.to_string().contains("base.part: expected a view inside its storage"));
            }
        }
    }
    assert!(failed >= 2, "{failed}");
}

#[test]
fn graphs_with_bad_lengths_are_refused() {
    let whole = fs::read(fixture("graph.pb")).unwrap();
    let mut long = whole.clone();
    long[1] = 0xff;
    long[2] = 0x7f;
    assert!(refused(&long).contains("GraphDef, byte"));
    // A dimension of 2^40.
    let at = whole.windows(2).position(|w| w == [0x08, 5]).unwrap();
    let mut wide = whole;
    wide[at + 1] = 6;
    assert!(refused(&wide).contains("elements for [2, 3, 4, 6]"));
}
