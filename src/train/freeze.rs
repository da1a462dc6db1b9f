//! Parameters of a generator that D2O trains: a rule over names, as in the original.

/// Layers that a freeze level leaves pre-trained: 0 none, 1 convolutions and attention projections, 2 also `qkv`, 3
/// also `skip`.
#[must_use]
pub fn frozen_layers(level: u8) -> &'static [&'static str] {
    const LAYERS: [&str; 4] = ["conv", "proj", "qkv", "skip"];
    match level {
        0 => &[],
        1 => &LAYERS[..2],
        2 => &LAYERS[..3],
        _ => &LAYERS,
    }
}

/// Whether parameter `path` (e.g. `model.enc.32x32_block0.conv0.weight`) is frozen at `level`: its path contains
/// `block`, `up`, `down` or `in`, and one of the layers of the level.
#[must_use]
pub fn is_frozen(path: &str, level: u8) -> bool {
    const PLACES: [&str; 4] = ["block", "up", "down", "in"];
    PLACES.iter().any(|p| path.contains(p)) && frozen_layers(level).iter().any(|l| path.contains(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_one_freezes_convolutions_of_blocks_only() {
        for frozen in ["enc.32x32_block0.conv0.weight", "dec.8x8_in0.proj.bias", "dec.16x16_up.conv1.weight"] {
            assert!(is_frozen(&format!("model.{frozen}"), 1), "{frozen}");
        }
        for trained in [
            "enc.32x32_conv.weight",
            "dec.32x32_aux_conv.weight",
            "enc.16x16_aux_residual.weight",
            "enc.32x32_block0.norm0.weight",
            "enc.32x32_block0.affine.weight",
            "enc.16x16_down.skip.weight",
            "dec.8x8_in0.qkv.weight",
            "map_layer0.weight",
        ] {
            assert!(!is_frozen(&format!("model.{trained}"), 1), "{trained}");
        }
        assert!(is_frozen("model.dec.8x8_in0.qkv.weight", 2));
        assert!(is_frozen("model.enc.16x16_down.skip.weight", 3));
        assert!(!is_frozen("model.enc.32x32_block0.conv0.weight", 0));
    }
}
