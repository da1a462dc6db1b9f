//! Tests of the readers with complete, truncated and damaged files of `tests/data/checkpoints`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d2o_converters::Error;
use d2o_converters::checkpoint::{CheckpointFile, Dtype, Format, Renamed, TensorSource, safetensors};
use d2o_converters::export::{self, Options};
use d2o_converters::{Architecture, Checkpoint, Network};
use fs_err as fs;
use proptest::prelude::*;
use zip::CompressionMethod::{self, Deflated, Stored};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/checkpoints").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// Values that the fixture generator writes to the tensor `name`.
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
    let network = checkpoint.network(None).unwrap();
    let Architecture::Denoiser(config) = &network.architecture else { panic!("{:?}", network.architecture) };
    assert_eq!((config.class(), config.img_resolution, config.label_dim), ("EDMPrecond", 8, 2));
    assert_eq!(config.init_kwargs()["dropout"], 0.125);
    for name in network.tensors.names() {
        let count = network.tensors.info(&name).unwrap().dims.iter().product();
        assert_eq!(network.tensors.read_f32(&name).unwrap(), expected(&name, count), "{name}");
    }
    let exported = export::denoiser(network, &Options::default()).unwrap();
    assert_eq!(exported.report.tensors, network.tensors.names().len());
    assert!(
        checkpoint.network(Some("net")).unwrap_err().to_string().contains("no network `net`: the file contains `ema`")
    );
}

/// Writes `archive` to `out` with an empty entry `first` before the other entries, and with the zip64 records that
/// torch adds even if they are not needed.
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

/// The records are 76 bytes long. So is the first header of the directory, if its name has 30 bytes. A parser that
/// guesses the start of the archive confused the two.
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
        let tensors = &checkpoint.network(None).unwrap().tensors;
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
        let t = &checkpoint.network(None).unwrap().tensors;
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
    let t = &checkpoint.network(None).unwrap().tensors;
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
    Ok(checkpoint.networks.iter().map(read).sum::<Result<usize, _>>()?)
}

#[test]
fn files_cut_short_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let whole = fs::read(fixture(name)).unwrap();
        assert!(read_all(&whole, dir.path()).is_ok());
        // A graph without its last nodes is still a graph.
        let (step, nodes) =
            if name == "graph.pb" { (1, &[549, 592, 630, 669][..]) } else { (whole.len() / 97, &[][..]) };
        for keep in (0..whole.len() - 1).step_by(step) {
            let opens = read_all(&whole[..keep], dir.path()).is_ok();
            assert_eq!(opens, nodes.contains(&keep), "{name} cut at {keep} opens: {opens}");
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
            // A view has no more elements than its storage has bytes; storages may be shared.
            prop_assert!(elements <= limit * 16, "{elements} elements from {limit} bytes");
        }
    }
}

fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    read_all(bytes, dir.path()).unwrap_err().to_string()
}

/// The opcode GLOBAL for the class or function `name`.
fn global(name: &str) -> Vec<u8> {
    let (module, member) = name.rsplit_once('.').unwrap();
    format!("c{module}\n{member}\n").into_bytes()
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &u32::try_from(value.len()).unwrap().to_le_bytes()[..], value.as_bytes()].concat()
}

/// A pickled object of the class `ModuleDict` with this state.
fn module(state: &[u8]) -> Vec<u8> {
    [&global("torch.nn.modules.container.ModuleDict")[..], b")\x81", state, b"b"].concat()
}

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

#[test]
fn hostile_pickles_name_opcode_and_offset() {
    let system = pickle(&[&global("os.system")[..], &text("true"), b"\x85R"].concat());
    assert!(refused(&system).contains("a module or a dict of tensors, found an object of `os.system`"));
    let nested = pickle(&[&b"}"[..], &text("ema"), &global("builtins.eval"), b"(", &text("1"), b"tRs"].concat());
    assert!(refused(&nested).contains("a module or a dict of tensors, found a dict of 1"));
    assert!(refused(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.").contains("opcode BINBYTES8 (0x8e) at byte 2"));
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
    // Forty levels, each with the level below as two children: 2^40 modules if expanded.
    let mut body = module(&[&b"}"[..], &text("_modules"), b"}s"].concat());
    for _ in 0..40 {
        body.extend(b"q\x000");
        let pair = [&text("a")[..], b"h\x00", &text("b"), b"h\x00"].concat();
        body.extend(module(&[&b"}"[..], &text("_modules"), b"}(", &pair, b"us"].concat()));
    }
    assert!(refused(&pickle(&body)).contains("steps for a file of"));
}

/// The content of the entry of `archive` with a name that ends in `end`.
fn entry(archive: &[u8], end: &str) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive)).unwrap();
    let index = (0..zip.len()).find(|i| zip.by_index(*i).unwrap().name().unwrap().ends_with(end)).unwrap();
    let mut content = Vec::new();
    std::io::copy(&mut zip.by_index(index).unwrap(), &mut content).unwrap();
    content
}

/// `archive` written again with the content of each entry replaced by the result of `change`.
fn rezipped(archive: &[u8], method: CompressionMethod, change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut old = zip::ZipArchive::new(std::io::Cursor::new(archive)).unwrap();
    let entries = (0..old.len()).map(|i| {
        let mut entry = old.by_index(i).unwrap();
        let mut content = Vec::new();
        std::io::copy(&mut entry, &mut content).unwrap();
        (entry.name().unwrap().into_owned(), content)
    });
    let entries: Vec<_> = entries.map(|(name, content)| (name.clone(), change(&name, content))).collect();
    zipped(&entries, method)
}

fn zipped(entries: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut new = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        new.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        std::io::Write::write_all(&mut new, content).unwrap();
    }
    new.finish().unwrap().into_inner()
}

/// An archive like those of torch.save, with this pickle and one storage of floats.
fn torch_archive(body: &[u8], values: &[f32]) -> Vec<u8> {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    zipped(&[("a/data.pkl".to_owned(), pickle(body)), ("a/data/0".to_owned(), data)], Stored)
}

/// A tensor in the storage `0` of `count` floats. The seventh argument sets the flag `metadata`, if given.
fn tensor(count: u8, dims: &[u8], strides: &[u8], metadata: Option<&str>) -> Vec<u8> {
    let list =
        |values: &[u8]| [b"(".to_vec(), values.iter().flat_map(|v| [b'K', *v]).collect(), b"t".to_vec()].concat();
    let storage =
        [b"(", &text("storage")[..], &global("torch.FloatStorage"), &text("0"), &text("cpu"), &[b'K', count], b"tQ"]
            .concat();
    let metadata = metadata.map_or(Vec::new(), |key| [b"}", &text(key)[..], b"\x88s"].concat());
    let hooks = [&global("collections.OrderedDict")[..], b")R"].concat();
    [
        &global("torch._utils._rebuild_tensor_v2")[..],
        b"(",
        &storage,
        b"K\x00",
        &list(dims),
        &list(strides),
        b"\x89",
        &hooks,
        &metadata,
        b"tR",
    ]
    .concat()
}

fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = items.iter().flat_map(|(k, v)| [text(k), v.clone()]).collect();
    [b"}(", &items.concat()[..], b"u"].concat()
}

fn opened(bytes: &[u8]) -> d2o_converters::Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    checkpoint.network(None).unwrap().tensors.read_f32(name).unwrap()
}

#[test]
fn archives_may_be_deflated_and_are_compared_with_their_checksums() {
    let archive = fs::read(fixture("state.pt")).unwrap();
    let (plain, deflated) = (open("state.pt"), opened(&rezipped(&archive, Deflated, |_, content| content)).unwrap());
    let names = plain.network(None).unwrap().tensors.names();
    assert_eq!(deflated.network(None).unwrap().tensors.names(), names);
    for name in &names {
        assert_eq!(read(&deflated, name), read(&plain, name), "{name}");
    }
    let bytes = torch_archive(&dict(&[("w", tensor(2, &[2], &[1], None))]), &[0.5, 1.5]);
    assert_eq!(read(&opened(&bytes).unwrap(), "w"), [0.5, 1.5]);
    let at = bytes.windows(4).position(|w| w == 1.5_f32.to_le_bytes()).unwrap();
    let mut flipped = bytes.clone();
    flipped[at + 2] ^= 1;
    let damaged = opened(&flipped).unwrap();
    let message = damaged.network(None).unwrap().tensors.read_f32("w").unwrap_err().to_string();
    assert!(message.contains("entry `a/data/0`: expected bytes with the checksum"), "{message}");
    // A checksum of 0 means that it was not computed.
    let crc = crc32fast::hash(&[0.5_f32.to_le_bytes(), 1.5_f32.to_le_bytes()].concat()).to_le_bytes();
    let places: Vec<_> = (0..flipped.len() - 4).filter(|i| flipped[*i..i + 4] == crc).collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|i| flipped[*i..i + 4].fill(0));
    assert_eq!(read(&opened(&flipped).unwrap(), "w")[0], 0.5);
}

#[test]
fn negative_and_expanded_views_are_read_and_conjugate_ones_refused() {
    let of = |tensor| opened(&torch_archive(&dict(&[("w", tensor)]), &[0.5, -1.5]));
    assert_eq!(read(&of(tensor(2, &[2], &[1], Some("neg"))).unwrap(), "w"), [-0.5, 1.5]);
    assert_eq!(read(&of(tensor(2, &[3, 2], &[0, 1], None)).unwrap(), "w"), [0.5, -1.5, 0.5, -1.5, 0.5, -1.5]);
    let message = of(tensor(2, &[2], &[1], Some("conj"))).unwrap_err().to_string();
    assert!(message.contains("w: expected real values, found a conjugate view"), "{message}");
    // 255⁴ elements that repeat one float.
    let message = of(tensor(1, &[255; 4], &[0; 4], None)).unwrap_err().to_string();
    assert!(message.contains("w, of shape [255, 255, 255, 255]") && message.contains("64 MiB of memory"), "{message}");
}

/// A pickle like those of `d2o train --pickle`. Its tensor `w` has these dimensions, this element type and these bytes.
fn own_pickle(dims: &[u8], kind: &str, bytes: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| [b'K', *d]).collect();
    let buffer = [&global("builtins.bytearray")[..], &[b'C', u8::try_from(bytes.len()).unwrap()], bytes, b"\x85R"];
    let array = [&global("numpy.ndarray")[..], b"((", &dims, b"t", &text(kind), &buffer.concat(), b"tR"].concat();
    let tensor = [&global("torch.from_numpy")[..], &array, b"\x85R"].concat();
    let class = [&global("functools.partial")[..], &global("training.networks.D2OPrecond"), b"q\x01\x85R"].concat();
    let kwargs = dict(&[("label_dim", b"K\x07".to_vec())]);
    let made = [&class[..], b"(h\x01)", &kwargs, b"Ntb)Rq\x02"].concat();
    let filled =
        [&global("torch.nn.Module.load_state_dict")[..], b"h\x02", &dict(&[("w", tensor)]), b"\x86R0"].concat();
    let recorded = dict(&[("sampler", text("two-step"))]);
    pickle(&dict(&[("ema", [made, filled].concat()), ("augment_pipe", b"N".to_vec()), ("d2o", recorded)]))
}

#[test]
fn pickles_of_d2o_are_read() {
    let bytes = [0.5_f32, 1.5].map(f32::to_le_bytes).concat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    fs::write(&path, own_pickle(&[2], "<f4", &bytes)).unwrap();
    let checkpoint = CheckpointFile::open(&path).unwrap();
    let [network] = &checkpoint.networks[..] else { panic!("{} networks", checkpoint.networks.len()) };
    assert_eq!((network.name.as_str(), network.class.as_deref()), ("ema", Some("D2OPrecond")));
    assert_eq!(network.init_kwargs["label_dim"], 7);
    assert_eq!(network.tensors.read_f32("w").unwrap(), [0.5, 1.5]);
    assert_eq!(checkpoint.metadata, [("sampler".to_owned(), "two-step".to_owned())]);
    for (dims, kind) in [(&[3][..], "<f4"), (&[255; 9], "<f4"), (&[1], "<f8"), (&[2], ">f4")] {
        let text = refused(&own_pickle(dims, kind, &bytes));
        assert!(text.contains("an array of f32 made of bytes and its size"), "{text}");
    }
}

#[test]
fn objects_beside_the_tensors_are_named_and_not_made() {
    let path = [&global("pathlib.PosixPath")[..], &text("/scratch"), b"\x85R"].concat();
    let weights = dict(&[("w", tensor(2, &[2], &[1], None))]);
    let checkpoint = opened(&torch_archive(
        &dict(&[("state_dict", weights.clone()), ("out", path.clone()), ("best", tensor(2, &[1], &[1], None))]),
        &[0.5, 1.5],
    ));
    let checkpoint = checkpoint.unwrap();
    assert_eq!(read(&checkpoint, "w"), [0.5, 1.5]);
    assert_eq!(checkpoint.notes, ["ignored tensors outside the networks: `best`"]);
    let checkpoint = opened(&torch_archive(&dict(&[("w", tensor(2, &[2], &[1], None)), ("out", path)]), &[0.5, 1.5]));
    assert_eq!(checkpoint.unwrap().notes, ["ignored objects next to the tensors: `out`"]);
}

#[test]
fn the_average_or_the_only_network_is_taken_and_any_by_its_name() {
    let weights = || dict(&[("w", tensor(2, &[2], &[1], None))]);
    let of = |names: &[&str]| {
        let items: Vec<_> = names.iter().map(|n| (*n, weights())).collect();
        opened(&torch_archive(&dict(&items), &[0.5, 1.5])).unwrap()
    };
    let taken = |names: &[&str], wanted: Option<&str>| {
        of(names).network(wanted).map(|n| n.name.clone()).map_err(|e| e.to_string())
    };
    for (names, wanted, name) in [
        (&["generator"][..], None, "generator"),
        (&["G", "D", "G_ema"], None, "G_ema"),
        (&["G", "D", "G_ema"], Some("ema"), "G_ema"),
        (&["G", "D", "G_ema"], Some("net"), "G"),
        (&["G", "D", "G_ema"], Some("D"), "D"),
        (&["state_dict", "state_dict_ema"], None, "state_dict_ema"),
        (&["state_dict", "state_dict_ema"], Some("state_dict"), "state_dict"),
    ] {
        assert_eq!(taken(names, wanted).as_deref(), Ok(name), "{names:?} {wanted:?}");
    }
    let asked = taken(&["teacher", "student"], None).unwrap_err();
    assert!(asked.contains("`teacher`, `student`") && asked.contains("--net"), "{asked}");
    assert!(taken(&["generator"], Some("net")).is_err());
}

#[test]
fn prefixes_of_wrappers_are_left_out() {
    let archive = fs::read(fixture("../openai/guided-new.pt")).unwrap();
    let plain = opened(&archive).unwrap();
    let names = plain.network(None).unwrap().tensors.names();
    // The same tensors under each of these prefixes.
    let wrapped = |prefixes: &[&str]| {
        let pickle = entry(&archive, "data.pkl");
        let start = [&b"X"[..], &u32::try_from(names[0].len()).unwrap().to_le_bytes(), names[0].as_bytes()].concat();
        let at = pickle.windows(start.len()).position(|w| w == start).unwrap();
        let items = &pickle[at..pickle.iter().rposition(|b| *b == b'u').unwrap()];
        let mut body = Vec::new();
        for prefix in prefixes {
            let mut all = items.to_vec();
            for name in &names {
                let old = text(name);
                let at = all.windows(old.len()).position(|w| w == old).unwrap();
                all.splice(at..at + old.len(), text(&format!("{prefix}{name}")));
            }
            body.extend(all);
        }
        let end = pickle.iter().rposition(|b| *b == b'u').unwrap();
        let whole = [&pickle[..at], &body, &pickle[end..]].concat();
        let changed = |name: &str, content| if name.ends_with("data.pkl") { whole.clone() } else { content };
        opened(&rezipped(&archive, Stored, changed)).unwrap()
    };
    for prefix in ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module.", "net.model."] {
        let checkpoint = wrapped(&[prefix]);
        let network = checkpoint.network(None).unwrap();
        assert!(matches!(network.architecture, Architecture::Inferred(_)), "{prefix}: {:?}", network.architecture);
        assert_eq!((network.tensors.names(), network.name.as_str()), (names.clone(), ""), "{prefix}");
    }
    let both = wrapped(&["model.", "ema_model."]);
    let found: Vec<_> = both.networks.iter().map(|n| (n.name.as_str(), n.tensors.names() == names)).collect();
    assert_eq!(found, [("ema_model", true), ("model", true)]);
    assert_eq!(both.network(None).unwrap().name, "ema_model");
}

#[test]
fn files_that_are_something_else_are_named() {
    for (content, what) in [
        (&b""[..], "an empty file"),
        (&[0; 100], "zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<?xml version=\"1.0\"?><Error/>", "an XML file"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\": ", "truncated"),
    ] {
        let message = refused(content);
        assert!(message.contains(what), "{message}");
    }
    let tensorflow = [&global("dnnlib.tflib.network.Network")[..], b")\x81}b\x85"].concat();
    assert!(refused(&pickle(&tensorflow)).contains("TensorFlow networks: convert the file with legacy.py"));
    let dir = tempfile::tempdir().unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("expected a file, found a folder"));
}

/// An expanded tensor takes 40 of the 64 MiB that a small file may take: alone, and in one of two networks.
#[test]
fn a_tensor_is_charged_once_and_read_by_its_whole_name() {
    let (expanded, plain) = (tensor(2, &[160, 255, 255], &[0, 0, 0], None), tensor(2, &[2], &[1], None));
    let one = opened(&torch_archive(&dict(&[("w", expanded.clone())]), &[0.5, 1.5])).unwrap();
    assert_eq!(one.tensors.info("w").unwrap().dims, [160, 255, 255]);
    let (a, b) = (dict(&[("w", expanded)]), dict(&[("w", plain.clone()), ("v.x", plain)]));
    let two = opened(&torch_archive(&dict(&[("a", a), ("b", b)]), &[0.5, 1.5])).unwrap();
    assert_eq!(two.tensors.names(), ["a.w", "b.w", "b.v.x"]);
    assert_eq!(two.tensors.read_f32("b.v.x").unwrap(), [0.5, 1.5]);
    assert!(two.tensors.info("w").is_none() && two.tensors.read_f32("b").is_err());
}

/// Using a shared object many times exceeds neither the budget nor the maximum number of networks.
#[test]
fn shared_objects_take_no_more_than_the_file_explains() {
    let limited = |bytes: &[u8]| {
        let message = opened(bytes).unwrap_err().to_string();
        assert!(message.contains("for a file of") || message.contains("at most 64 networks"), "{message}");
    };
    let shared = |first: &[u8], unit: &[u8], times: usize, last: &[u8]| [first, &unit.repeat(times), last].concat();
    // A state dict of 5000 entries under 5000 keys.
    let inner = shared(
        &[b"}(", &text("w")[..], b"q\x01", &tensor(1, &[1], &[1], None), b"q\x02"].concat(),
        b"h\x01h\x02",
        5000,
        b"uq\x03",
    );
    let key = [&text("d")[..], b"q\x04"].concat();
    limited(&torch_archive(&shared(&[&inner[..], b"0}(", &key, b"h\x03"].concat(), b"h\x04h\x03", 5000, b"u"), &[1.0]));
    // One long text in constructor arguments and as the source of many objects.
    let long = "a".repeat(1 << 20);
    let arguments = shared(&[b"](", &text(&long)[..], b"q\x05"].concat(), b"h\x05", 4000, b"e");
    let state = dict(&[("_init_args", arguments), ("_init_kwargs", b"}".to_vec())]);
    let object = |source: &str, state: Vec<u8>| {
        let meta = dict(&[
            ("version", b"K\x06".to_vec()),
            ("module_src", text(source)),
            ("class_name", text("EDMPrecond")),
            ("state", state),
        ]);
        [&global("torch_utils.persistence._reconstruct_persistent_obj")[..], b"(", &meta, b"tR"].concat()
    };
    limited(&pickle(&dict(&[("ema", object("", state))])));
    let state = dict(&[("_init_args", b")".to_vec()), ("_init_kwargs", b"}".to_vec())]);
    let first = [b"}(", &text("k")[..], b"q\x06", &object(&long, state), b"q\x07"].concat();
    limited(&pickle(&shared(&first, b"h\x06h\x07", 4000, b"u")));
    // A module with a long state under many keys: the state is searched for each key.
    let state = shared(&[b"}(", &text("k")[..], b"q\x08N"].concat(), b"h\x08N", 20_000, b"u");
    let module = [&global("torch.nn.Linear")[..], b")\x81", &state, b"b"].concat();
    let first = [b"}(", &text("d")[..], b"q\x09", &module, b"q\x0a"].concat();
    limited(&pickle(&shared(&first, b"h\x09h\x0a", 20_000, b"u")));
}

/// A nested file of 256 KiB that 2000 calls refer to. Reading it once fits into the budget, reading it 2000 times does
/// not.
#[test]
fn a_nested_file_behind_many_calls_is_read_once() {
    const COUNT: u32 = 1 << 16;
    let head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let storage = [&text("storage")[..], &global("torch.FloatStorage"), &text("0"), &text("cpu"), b"J"].concat();
    let object = [b"\x80\x02(", &storage[..], &COUNT.to_le_bytes(), b"NtQ."].concat();
    let keys = [b"\x80\x02]", &text("0")[..], b"a."].concat();
    let file = [&head[..], &object, &keys, &u64::from(COUNT).to_le_bytes(), &vec![0; 4 * COUNT as usize]].concat();
    // Protocol 2 has no opcode for bytes and stores them as Latin-1 text.
    let latin1: String = file.iter().map(|b| char::from(*b)).collect();
    let first = [&text(&latin1)[..], b"q\x010", &global("torch._utils._rebuild_tensor_v2"), b"q\x020"].concat();
    let nested = [&global("_codecs.encode")[..], b"h\x01", &text("latin1"), b"\x86R"].concat();
    let tensor = |name: &str| {
        let call = [&global("torch.storage._load_from_bytes")[..], &nested, b"\x85R"].concat();
        let hooks = [&global("collections.OrderedDict")[..], b")R"].concat();
        [&text(name)[..], b"h\x02(", &call, b"K\0K\x02\x85K\x01\x85\x89", &hooks, b"tR"].concat()
    };
    let entries: Vec<u8> = (0..2000).flat_map(|i| tensor(&i.to_string())).collect();
    let checkpoint = opened(&pickle(&[&first[..], b"}(", &entries, b"u"].concat())).unwrap();
    let tensors = &checkpoint.network(None).unwrap().tensors;
    assert_eq!((tensors.names().len(), tensors.read_f32("1999").unwrap()), (2000, vec![0.0, 0.0]));
}

#[test]
fn networks_listed_in_safetensors_are_few_and_there() {
    let of = |networks: &[&str]| {
        let kwargs = r#"{"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"}"#;
        let metadata = serde_json::json!({"class": "EDMPrecond", "init_kwargs": kwargs, "networks": serde_json::json!(networks).to_string()});
        let header = serde_json::json!({"__metadata__": metadata, "ema.w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]},
            "rest": {"dtype": "U16", "shape": [2], "data_offsets": [1, 5]}});
        let header = header.to_string();
        opened(&[&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"\x38\x01\x02\xff\xff"].concat())
    };
    let checkpoint = of(&["ema"]).unwrap();
    let tensors = &checkpoint.network(None).unwrap().tensors;
    assert_eq!((tensors.names(), tensors.info("w").unwrap().dtype), (vec!["w".to_owned()], Dtype::Other("F8_E4M3")));
    assert!(tensors.read_f32("w").unwrap_err().to_string().contains("found F8_E4M3"));
    assert_eq!(checkpoint.tensors.read_f32("rest").unwrap(), [513.0, 65535.0]);
    let fails = |networks: &[&str]| of(networks).unwrap_err().to_string();
    assert!(fails(&["ema", "ema"]).contains("`ema` twice"));
    assert!(fails(&["ema", "net"]).contains("`net`, which no tensor has"));
    assert!(fails(&[""; 65]).contains("at most 64 names"));
}

/// A safetensors file with `metadata` and these f32 tensors. The values are 0, 1, 2 … throughout the file.
fn safetensors_file(metadata: &serde_json::Value, tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut header = serde_json::json!({"__metadata__": metadata});
    let mut end = 0;
    for (name, count) in tensors {
        let offsets = [4 * end, 4 * (end + count)];
        header[*name] = serde_json::json!({"dtype": "F32", "shape": [count], "data_offsets": offsets});
        end += count;
    }
    let (header, values) = (header.to_string(), (0..end).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<_>>());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values].concat()
}

#[test]
fn hostile_constructor_arguments_are_refused_by_name() {
    let huge = serde_json::json!(u64::MAX);
    let edm = serde_json::json!({"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"});
    let adm = serde_json::json!({"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet"});
    let openai = serde_json::json!({"image_size": 8, "distillation": false});
    let cases = [
        ("EDMPrecond", &edm, "img_resolution", huge.clone(), "`img_resolution`: expected 1 to 4096"),
        ("EDMPrecond", &edm, "img_resolution", 0.into(), "`img_resolution`: expected 1 to 4096"),
        ("EDMPrecond", &edm, "img_channels", huge.clone(), "`img_channels`: expected 1 to"),
        ("EDMPrecond", &edm, "label_dim", huge.clone(), "`label_dim`: expected 0 to"),
        ("EDMPrecond", &edm, "augment_dim", huge.clone(), "`augment_dim`: expected 0 to"),
        ("EDMPrecond", &edm, "model_channels", huge.clone(), "`model_channels`: expected 4 to"),
        ("EDMPrecond", &edm, "channel_mult_noise", huge.clone(), "`model_channels`: expected 4 to"),
        ("EDMPrecond", &edm, "channel_mult_emb", huge.clone(), "`channel_mult_emb`: expected 1 to 64"),
        ("EDMPrecond", &edm, "channel_mult", serde_json::json!([]), "`channel_mult (length)`: expected 1 to 12"),
        ("EDMPrecond", &edm, "channel_mult", vec![1; 64].into(), "`channel_mult (length)`: expected 1 to 12"),
        ("EDMPrecond", &edm, "channel_mult", serde_json::json!([u64::MAX]), "`channel_mult`: expected 0.125 to 64"),
        ("EDMPrecond", &edm, "num_blocks", huge.clone(), "`num_blocks`: expected 1 to 64"),
        ("EDMPrecond", &edm, "resample_filter", serde_json::json!([]), "`resample_filter`: expected an even number"),
        ("EDMPrecond", &edm, "resample_filter", vec![1.0; 1024].into(), "`resample_filter`: expected an even number"),
        ("EDMPrecond", &edm, "resample_filter", serde_json::json!([1.0, -1.0]), "finite and not 0"),
        ("EDMPrecond", &edm, "label_dropout", (-1.0).into(), "`label_dropout`: expected 0 to below 1"),
        ("EDMPrecond", &edm, "num_blocks", "4".into(), "arguments of `SongUNet`"),
        ("EDMPrecond", &edm, "surprise", 1.into(), "unknown field `surprise`"),
        ("EDMPrecond", &adm, "augment_dim", huge.clone(), "`augment_dim`: expected 0 to"),
        ("EDMPrecond", &adm, "channel_mult", serde_json::json!([u64::MAX]), "`channel_mult`: expected 0.125 to 64"),
        ("iDDPMPrecond", &adm, "M", huge.clone(), "`M`: expected 1 to"),
        ("KarrasDenoiser", &openai, "model_channels", huge.clone(), "`model_channels`: expected 4 to"),
        ("KarrasDenoiser", &openai, "channel_mult", serde_json::json!([1e300]), "`channel_mult`: expected 0.125 to 64"),
        ("KarrasDenoiser", &openai, "out_channels", huge, "`out_channels`: expected 3"),
    ];
    for (class, base, name, value, expected) in cases {
        let mut kwargs = base.clone();
        kwargs[name] = value;
        let metadata = serde_json::json!({"class": class, "init_kwargs": kwargs.to_string()});
        let laid_out = opened(&safetensors_file(&metadata, &[("w", 1)]))
            .and_then(|c| export::denoiser(c.network(None)?, &Options::default()).map(|_| ()));
        let text = laid_out.unwrap_err().to_string();
        assert!(text.contains(expected), "{class} {kwargs}: {text}");
    }
}

/// Two tensors that would have the same name both stay visible, so that a load, which takes one, reports the other.
#[test]
fn renamed_tensors_of_one_name_stay_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = [("a.w", 1), ("b.w", 2), ("c.w", 1), ("w", 2)];
    fs::write(&path, safetensors_file(&serde_json::json!({}), &tensors)).unwrap();
    let source = Arc::new(safetensors::SafetensorsFile::open(&path).unwrap());
    let last = |n: &str| n.rsplit('.').next().map(str::to_owned);
    let renamed = Renamed::new(source, last);
    assert_eq!(renamed.names(), ["w", "b.w (a second w)", "c.w (a second w)", "w (a second w)"]);
    for (name, values) in renamed.names().iter().zip([&[0.0][..], &[1.0, 2.0], &[3.0], &[4.0, 5.0]]) {
        assert_eq!(renamed.info(name).unwrap().dims, [values.len()], "{name}");
        assert_eq!(renamed.read_f32(name).unwrap(), values, "{name}");
    }
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let archive = fs::read(fixture("state.pt")).unwrap();
    let whole = entry(&archive, "data.pkl");
    // Offset, sizes and strides of `base.part`: K\x08, K\x02K\x03\x86, K\x06K\x01\x86.
    let at = whole.windows(2).enumerate().filter(|(_, w)| *w == b"K\x08").map(|(i, _)| i);
    let mut failed = 0;
    for i in at {
        for (place, value) in [(1, 0x16), (1, 0xff)] {
            let mut bytes = whole.clone();
            bytes[i + place] = value;
            let dir = tempfile::tempdir().unwrap();
            let changed = |name: &str, content| if name.ends_with("data.pkl") { bytes.clone() } else { content };
            if let Err(e) = read_all(&rezipped(&archive, Stored, changed), dir.path()) {
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
    // A dimension of 6 with values for a dimension of 5.
    let at = whole.windows(2).position(|w| w == [0x08, 5]).unwrap();
    let mut wide = whole;
    wide[at + 1] = 6;
    assert!(refused(&wide).contains("elements for [2, 3, 4, 6]"));
}
