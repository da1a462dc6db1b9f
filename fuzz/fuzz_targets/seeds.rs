//! Not a target: writes the initial inputs of all targets. `D2O_FIXTURES` names the folder of the checkpoint fixtures,
//! `D2O_CORPUS` the folder for the inputs. Built like the targets, because code built with coverage needs the fuzzer's
//! runtime.
#![no_main]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use d2o_converters::checkpoint::safetensors::{self, Tensor};
use d2o_converters::denoiser::NetConfig;
use d2o_converters::export::{self, Options};
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::denoiser::Denoiser;
use d2o_converters::weights::Weights;
use d2o_refs::archive::Archive;
use d2o_refs::batch::ImageDims;
use d2o_refs::features::{FeatureWriter, Meta};
use d2o_refs::hdf5::Hdf5Writer;
use d2o_refs::image_zip::DatasetWriter;
use d2o_refs::npy::{self, Dtype};
use d2o_refs::npz::NpzWriter;
use ndarray::{Array1, Array2, Array4};

libfuzzer_sys::fuzz_target!(init: finish(), |_bytes: &[u8]| {});

/// Writes the inputs and ends the process: there is nothing to fuzz.
fn finish() {
    if let Err(error) = write() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn write() -> Result<(), Box<dyn Error>> {
    let variable = |name| std::env::var_os(name).ok_or(name);
    let (fixtures, corpus) = (variable("D2O_FIXTURES")?, variable("D2O_CORPUS")?);
    let (fixtures, corpus) = (Path::new(&fixtures), Path::new(&corpus));
    let folder = |target: &str| -> std::io::Result<std::path::PathBuf> {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    };
    let copies: [(&str, &[&str]); 5] = [
        ("pickle", &["edm.pkl", "pair-protocol2.pkl", "pair-protocol3.pkl", "pair-protocol4.pkl", "pair-protocol5.pkl"]),
        ("torch_zip", &["state.pt", "wrapped.pt"]),
        ("torch_legacy", &["state-legacy.pth"]),
        ("torchscript", &["script.pt"]),
        ("graph_def", &["graph.pb"]),
    ];
    for (target, files) in copies {
        let dir = folder(target)?;
        for file in files {
            let bytes = std::fs::read(fixtures.join(file))?;
            std::fs::write(dir.join(file), &bytes)?;
            // The pickle in an archive follows its name in the local header, because torch stores it uncompressed.
            let name = b"data.pkl";
            let inside = bytes.windows(name.len()).position(|w| w == name).map(|at| &bytes[at + name.len()..]);
            if let (true, Some(rest)) = (bytes.starts_with(b"PK"), inside) {
                let start = rest.windows(2).position(|w| w == b"\x80\x02").unwrap_or(0);
                let end = rest.windows(2).position(|w| w == b"PK").unwrap_or(rest.len());
                std::fs::write(dir.join(format!("{file}.data.pkl")), &rest[start..end.max(start)])?;
            }
        }
    }

    let kwargs = smallest_network();
    let tensors = [Tensor { name: "a.weight".to_owned(), dims: vec![2, 3], values: vec![0.5; 6] }];
    let metadata = BTreeMap::from([("class".to_owned(), "EDMPrecond".to_owned()), ("init_kwargs".to_owned(), kwargs.to_owned())]);
    safetensors::write(&folder("safetensors")?.join("plain"), &tensors, &BTreeMap::new())?;
    safetensors::write(&folder("safetensors")?.join("network"), &tensors, &metadata)?;
    // Whole networks, with all tensors that they need.
    for (name, class, more) in [
        ("song", "EDMPrecond", r#""model_type": "SongUNet", "resample_filter": [1, 3, 3, 1], "encoder_type": "skip", "decoder_type": "skip""#),
        ("fourier", "VEPrecond", r#""model_type": "SongUNet", "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual""#),
        ("dhariwal", "iDDPMPrecond", r#""model_type": "DhariwalUNet", "label_dim": 2"#),
    ] {
        let kwargs = format!(
            r#"{{"img_resolution": 4, "img_channels": 3, "model_channels": 4, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [], {more}}}"#
        );
        let config = NetConfig::new(class, &kwargs.parse()?)?;
        let mut b = OnnxBackend::new(class, Weights::initialised(0));
        Denoiser::build(&mut b, &config)?;
        let tensor = |(name, dims): (&str, &[usize])| {
            let values = (0..dims.iter().product()).map(|i: usize| (i % 7) as f32 / 8.0 - 0.25).collect();
            Tensor { name: name.to_owned(), dims: dims.to_vec(), values }
        };
        let tensors: Vec<Tensor> = b.weights().taken().map(tensor).collect();
        let metadata = BTreeMap::from([("class".to_owned(), class.to_owned()), ("init_kwargs".to_owned(), kwargs)]);
        safetensors::write(&folder("export")?.join(name), &tensors, &metadata)?;
    }
    for file in ["edm.pkl", "script.pt", "graph.pb"] {
        std::fs::copy(fixtures.join(file), folder("export")?.join(file))?;
    }
    for file in ["openai/guided-new.pt", "openai/cm-cond.pt", "stylegan2/resnet.pkl"] {
        let (_, name) = file.split_once('/').unwrap_or(("", file));
        std::fs::copy(fixtures.join("..").join(file), folder("export")?.join(name))?;
    }

    for (name, dtype, shape, bytes) in
        [("f8", Dtype::F64, vec![2, 2], 32), ("f4", Dtype::F32, vec![3], 12), ("images", Dtype::U8, vec![2, 4, 4, 3], 96)]
    {
        let mut file = Vec::new();
        npy::write_header(&mut file, dtype, &shape)?;
        file.extend(vec![7_u8; bytes]);
        for target in ["npy", "npz"] {
            std::fs::write(folder(target)?.join(name), &file)?;
        }
        let cut = u8::try_from(file.len()).unwrap_or(u8::MAX);
        std::fs::write(folder("stats")?.join(name), [&[cut], &file[..], &file[..]].concat())?;
    }
    let mut npz = NpzWriter::create(&folder("npz")?.join("whole"))?;
    npz.start("arr_0", Dtype::U8, &[2, 4, 4, 3])?;
    npz.raw(&[9; 96])?;
    npz.i64("arr_1", &[1, 0])?;
    npz.finish()?;
    let mut npz = NpzWriter::create(&folder("stats")?.join("whole"))?;
    for (mean, covariance, length) in [("mu", "sigma", 3), ("mu_s", "sigma_s", 2)] {
        npz.f64(mean, Array1::zeros(length).view().into_dyn())?;
        npz.f64(covariance, Array2::eye(length).view().into_dyn())?;
    }
    npz.finish()?;

    let path = folder("image_zip")?.join("whole");
    let mut zip = DatasetWriter::create(&path)?;
    zip.append(&Array4::from_elem((2, 4, 4, 3), 40), Some(&[1, 0]))?;
    zip.finish()?;
    std::fs::write(folder("image_zip")?.join("png"), d2o_refs::png(&path, "", Array4::<u8>::zeros((1, 5, 5, 3)).index_axis(ndarray::Axis(0), 0))?)?;
    std::fs::write(folder("image_zip")?.join("labels"), br#"{"labels": [["00000/img00000000.png", 3]]}"#)?;

    for (name, labels) in [("plain", None), ("classes", Some([1_i64, 0, 1]))] {
        let dims = ImageDims { height: 4, width: 5, channels: 3 };
        let mut writer = Hdf5Writer::create(&folder("hdf5")?.join(name), 3, dims)?;
        writer.append(&Array4::from_shape_fn((3, 4, 5, 3), |(i, y, x, c)| (i * 60 + y * 15 + x * 3 + c) as u8))?;
        if let Some(labels) = labels {
            writer.values("labels", &labels)?;
        }
        writer.finish()?;
    }
    hdf5_of_other_writers(&folder("hdf5")?)?;
    for (name, labels) in [("features", None), ("labels", Some(&[2_i64, 0, 1][..]))] {
        let meta = Meta {
            d2o_features: 0,
            source_sha256: "00".repeat(32),
            total: 5,
            rows: 1..4,
            images: None,
            batch: 2,
            networks: BTreeMap::new(),
            generator: None,
            sha256: BTreeMap::new(),
        };
        let mut writer = FeatureWriter::create(&folder("features")?.join(name), meta)?;
        let rows = Array2::from_shape_fn((3, 4), |(i, j)| i as f32 + j as f32 / 8.0);
        writer.append(&[[7; 32]; 3], &[("features", rows.view()), ("logits", rows.view())])?;
        writer.finish(labels)?;
    }

    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../refs/tests/data/decode.zip");
    let images = Archive::open(&cases, "a zip archive")?;
    for i in 0..images.len() {
        std::fs::write(folder("image")?.join(images.name(i).replace('/', "-")), images.whole(i, 1 << 20)?)?;
    }

    let config = NetConfig::new("EDMPrecond", &kwargs.parse()?)?;
    let exported = export::denoiser_of(&config, Weights::initialised(0), &Options::default())?;
    d2o_onnx::write::write(&exported.model, &folder("onnx")?.join("network"))?;
    Ok(())
}

/// Writes HDF5 files with what d2o's writers do not use: groups, other types and storage, filters, virtual datasets,
/// attributes, and the format of newer libraries.
fn hdf5_of_other_writers(folder: &Path) -> Result<(), Box<dyn Error>> {
    const SHAPE: (usize, usize, usize, usize) = (3, 4, 5, 3);
    let images = Array4::<u8>::from_elem(SHAPE, 40);
    for latest in [false, true] {
        let create = |name: &str| {
            let mut builder = hdf5::FileBuilder::new();
            if latest {
                builder.with_fapl(|p| p.libver_latest());
            }
            builder.create(folder.join(format!("{name}-{}", if latest { "new" } else { "old" })))
        };
        let file = create("storage")?;
        let group = file.create_group("group")?;
        group.new_dataset::<u8>().shape(SHAPE).create("images")?.write(&images)?;
        let chunked = || group.new_dataset::<f32>().shape(SHAPE).chunk((1, 2, 3, 3));
        chunked().shuffle().deflate(4).fletcher32().create("floats")?.write(&images.mapv(f32::from))?;
        group.new_dataset::<i64>().shape((hdf5::Extent::resizable(3),)).chunk(2).create("labels")?.write_raw(&[2_i64, 0, 1])?;
        group.new_attr::<i32>().shape(3).create("numbers")?.write_raw(&[1, 2, 3])?;
        file.link_soft("/group/images", "images")?;
        let file = create("packed")?;
        file.new_dataset::<i32>().shape(SHAPE).chunk(SHAPE).nbit().create("nbit")?.write(&images.mapv(i32::from))?;
        file.new_dataset::<u8>().shape(SHAPE).chunk(SHAPE).scale_offset(hdf5::filters::ScaleOffset::Integer(0)).create("scaled")?.write(&images)?;
        file.new_dataset::<u8>().shape(SHAPE).layout(hdf5::plist::dataset_create::Layout::Compact).create("images")?.write(&images)?;
        let file = create("virtual")?;
        file.new_dataset::<u8>().shape(SHAPE).create("part")?.write(&images)?;
        file.new_dataset::<u8>().shape(SHAPE).virtual_map(".", "part", SHAPE, .., SHAPE, ..).create("images")?;
    }
    Ok(())
}

/// Constructor arguments of the smallest network.
fn smallest_network() -> &'static str {
    r#"{"img_resolution": 4, "img_channels": 3, "model_type": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}"#
}
