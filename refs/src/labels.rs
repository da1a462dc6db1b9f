//! Labels of image sets, and the check whether they are classes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Name of the label file of a folder or zip.
pub const LABEL_FILE: &str = "dataset.json";
/// 2^53. f64 represents all smaller whole numbers exactly.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;
/// Most values of a label in a message.
const SHOWN: usize = 8;

/// Labels of a set of images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Labels {
    /// No labels.
    #[default]
    None,
    /// The class of each image, 0 or more.
    Classes(Vec<i64>),
    /// The labels are not classes, for this reason.
    Problem(String),
}

impl Labels {
    /// The classes.
    pub(crate) fn classes(&self) -> Option<&[i64]> {
        match self {
            Self::Classes(classes) => Some(classes),
            Self::None | Self::Problem(_) => None,
        }
    }

    /// Why the labels are not classes.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self {
            Self::Problem(text) => Some(text),
            Self::None | Self::Classes(_) => None,
        }
    }
}

/// Values of a label array.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// Integers and booleans, exact.
    Integers(Vec<i64>),
    /// Unsigned integers of 64 bits.
    Unsigned(Vec<u64>),
    /// Floats.
    Floats(Vec<f64>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Integers(v) => v.len(),
            Self::Unsigned(v) => v.len(),
            Self::Floats(v) => v.len(),
        }
    }

    /// Value `index` as a class: a whole number of 0 or more.
    fn class(&self, index: usize) -> Option<i64> {
        match self {
            Self::Integers(v) => v.get(index).copied().filter(|v| *v >= 0),
            Self::Unsigned(v) => v.get(index).and_then(|v| i64::try_from(*v).ok()),
            Self::Floats(v) => v.get(index).and_then(|v| whole(*v)),
        }
    }

    fn show(&self, index: usize) -> String {
        match self {
            Self::Integers(v) => v.get(index).map(ToString::to_string),
            Self::Unsigned(v) => v.get(index).map(ToString::to_string),
            Self::Floats(v) => v.get(index).map(ToString::to_string),
        }
        .unwrap_or_default()
    }
}

/// `value` as a class, if it is a whole number from 0 to below 2^53.
fn whole(value: f64) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and below 2^53")]
    (value.fract() == 0.0 && (0.0..MAX_WHOLE).contains(&value)).then_some(value as i64)
}

/// Checks that an array of `shape` can contain one class for each of `count` images: `[N]`, `[N, 1]` or one-hot
/// `[N, K]`. The error is the reason why not.
pub(crate) fn check_shape(place: &str, shape: &[usize], count: usize) -> Result<(), String> {
    match *shape {
        [rows] | [rows, _] if rows != count => Err(format!("`{place}` has {rows} rows for {count} images")),
        [_] => Ok(()),
        [_, width] if width > 0 => Ok(()),
        _ => Err(format!("`{place}` has shape {shape:?}, not [{count}]")),
    }
}

/// Classes of `count` images from array `place` of `shape`, C order.
pub(crate) fn of_array(place: &str, shape: &[usize], values: &Values, count: usize) -> Labels {
    if let Err(problem) = check_shape(place, shape, count) {
        return Labels::Problem(problem);
    }
    let width = shape.get(1).copied().unwrap_or(1);
    if count.checked_mul(width) != Some(values.len()) {
        return Labels::Problem(format!("`{place}` holds {} values for shape {shape:?}", values.len()));
    }
    let mut classes = Vec::with_capacity(count);
    for row in 0..count {
        let found = if width == 1 {
            values.class(row).ok_or_else(|| format!("row {row} of `{place}` is {}", values.show(row)))
        } else {
            let at = row * width;
            let one_hot = one_hot((at..at + width).map(|i| values.class(i)));
            one_hot.ok_or_else(|| {
                let mut shown: Vec<_> = (at..at + width.min(SHOWN)).map(|i| values.show(i)).collect();
                shown.extend((width > SHOWN).then(|| "…".to_owned()));
                format!("row {row} of `{place}` is [{}], not one-hot", shown.join(", "))
            })
        };
        match found {
            Ok(class) => classes.push(class),
            Err(problem) => return Labels::Problem(problem),
        }
    }
    Labels::Classes(classes)
}

/// Index of the only 1 among zeros.
fn one_hot(values: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    let mut found = None;
    for (index, value) in values.enumerate() {
        match value {
            Some(0) => {}
            Some(1) if found.is_none() => found = i64::try_from(index).ok(),
            _ => return None,
        }
    }
    found
}

/// Classes of the sorted `names` from a `dataset.json`: `{"labels": [["path", 3], …]}` or null. A one-hot vector stands
/// for the index of its 1. If a name has several labels, the last one counts.
pub(crate) fn of_json(json: &[u8], names: &[&str]) -> Labels {
    debug_assert!(names.is_sorted(), "names are searched");
    let mut found = Classes { names, classes: Vec::new(), others: BTreeMap::new(), rows: 0 };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let parsed = LabelFile(&mut found).deserialize(&mut reader).and_then(|()| reader.end());
    if let Err(e) = parsed {
        return Labels::Problem(format!("`{LABEL_FILE}` is not a list of [path, class] under `labels`: {e}"));
    }
    if found.rows == 0 {
        return Labels::None;
    }
    let has = |i: usize| found.classes.get(i).is_some_and(|c| *c != NO_LABEL);
    let missing = (0..names.len()).filter(|i| !has(*i)).count();
    if let Some(first) = (0..names.len()).find(|i| !has(*i)) {
        return Labels::Problem(format!(
            "`{LABEL_FILE}` has no label for {missing} of {} images, e.g. `{}`",
            names.len(),
            names[first]
        ));
    }
    if let Some((index, found)) = found.others.first_key_value() {
        return Labels::Problem(format!("the label of `{}` in `{LABEL_FILE}` is {found}", names[*index]));
    }
    Labels::Classes(found.classes)
}

/// Placeholders in `Classes::classes`: the image has no label; the label of the image is not a class.
const NO_LABEL: i64 = -1;
const NO_CLASS: i64 = -2;

/// The labels of `names`, filled in during parsing. The rows of the file are not kept.
struct Classes<'a> {
    names: &'a [&'a str],
    classes: Vec<i64>,
    /// Labels that are not classes, by image index.
    others: BTreeMap<usize, String>,
    rows: usize,
}

impl Classes<'_> {
    fn add(&mut self, name: &str, label: Label) {
        self.classes.resize(self.names.len(), NO_LABEL);
        let Ok(found) = self.names.binary_search(&name) else { return };
        // Two names that are not UTF-8 can be equal after replacement.
        let first = self.names[..found].partition_point(|n| *n < name);
        let last = found + self.names[found..].partition_point(|n| *n <= name);
        for index in first..last {
            match &label {
                Label::Class(class) | Label::OneHot(class) => {
                    self.classes[index] = *class;
                    self.others.remove(&index);
                }
                Label::Other(text) => {
                    self.classes[index] = NO_CLASS;
                    self.others.insert(index, text.clone());
                }
            }
        }
    }
}

/// Folder names of the splits of one set.
const SPLITS: [&str; 8] = ["train", "training", "val", "valid", "validation", "test", "dev", "eval"];
/// Lengths of numbered folder names: `00000/img00000000.png` (datasets of EDM), `000000/000123.png` (EDM `--subdirs`).
const NUMBERED: [usize; 2] = [5, 6];

/// Classes by folder, same as `ImageFolder` of torchvision. Each of the sorted `names` lies exactly one folder deep, in
/// at least two folders; classes are numbered in sorted order. Numbered folders (`00000/`) and splits (`train/`) are
/// not classes.
pub(crate) fn of_folders(names: &[&str]) -> Labels {
    let mut folders: Vec<&str> = Vec::new();
    for name in names {
        match name.split_once('/') {
            Some((folder, file)) if !file.contains('/') => folders.push(folder),
            _ => return Labels::None,
        }
    }
    let mut sorted = folders.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if !folders_are_classes(&sorted) {
        return Labels::None;
    }
    let class = |folder: &str| sorted.binary_search(&folder).ok().and_then(|i| i64::try_from(i).ok());
    folders.into_iter().map(class).collect::<Option<_>>().map_or(Labels::None, Labels::Classes)
}

/// Whether the distinct `folders` look like classes: at least two, not all of them numbered, and not all of them
/// splits.
#[must_use]
pub fn folders_are_classes(folders: &[&str]) -> bool {
    let numbered = folders.iter().all(|f| NUMBERED.contains(&f.len()) && f.bytes().all(|b| b.is_ascii_digit()));
    let splits = folders.iter().all(|f| SPLITS.contains(&f.to_ascii_lowercase().as_str()));
    folders.len() >= 2 && !numbered && !splits
}

struct LabelFile<'a, 'n>(&'a mut Classes<'n>);

impl<'de> DeserializeSeed<'de> for LabelFile<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LabelFile<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `labels`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != "labels" {
                map.next_value::<IgnoredAny>()?;
            } else if std::mem::replace(&mut seen, true) {
                return Err(serde::de::Error::duplicate_field("labels"));
            } else {
                map.next_value_seed(Rows(&mut *self.0))?;
            }
        }
        Ok(())
    }
}

struct Rows<'a, 'n>(&'a mut Classes<'n>);

impl<'de> DeserializeSeed<'de> for Rows<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of [path, class]")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some((name, label)) = seq.next_element::<(Text<'de>, Label)>()? {
            self.0.rows += 1;
            self.0.add(&name.0, label);
        }
        Ok(())
    }
}

/// Text, borrowed if the file contains it without escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One label, reduced to a class or a description during parsing. Vectors are not kept.
enum Label {
    Class(i64),
    /// The class of a one-hot vector.
    OneHot(i64),
    Other(String),
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LabelVisitor)
    }
}

struct LabelVisitor;

impl<'de> Visitor<'de> for LabelVisitor {
    type Value = Label;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a class or a vector")
    }

    fn visit_i64<E>(self, v: i64) -> Result<Label, E> {
        Ok(if v >= 0 { Label::Class(v) } else { Label::Other(v.to_string()) })
    }

    fn visit_u64<E>(self, v: u64) -> Result<Label, E> {
        Ok(i64::try_from(v).map_or_else(|_| Label::Other(v.to_string()), Label::Class))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Label, E> {
        Ok(whole(v).map_or_else(|| Label::Other(v.to_string()), Label::Class))
    }

    fn visit_bool<E>(self, v: bool) -> Result<Label, E> {
        Ok(Label::Class(i64::from(v)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Label, E> {
        Ok(Label::Other(format!("the text {:?}", v.chars().take(40).collect::<String>())))
    }

    fn visit_unit<E>(self) -> Result<Label, E> {
        Ok(Label::Other("null".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Label, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Label::Other("an object".to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Label, A::Error> {
        let (mut shown, mut length, mut ones, mut others, mut at) = (Vec::new(), 0_usize, 0_usize, 0_usize, 0_i64);
        while let Some(value) = seq.next_element::<Label>()? {
            match value {
                Label::Class(0) => {}
                Label::Class(1) => {
                    ones += 1;
                    at = i64::try_from(length).unwrap_or(i64::MAX);
                }
                Label::Class(_) | Label::OneHot(_) | Label::Other(_) => others += 1,
            }
            length += 1;
            if shown.len() < SHOWN {
                shown.push(match value {
                    Label::Class(v) => v.to_string(),
                    Label::OneHot(_) => "a vector".to_owned(),
                    Label::Other(v) => v,
                });
            }
        }
        if ones == 1 && others == 0 && length > 1 {
            return Ok(Label::OneHot(at));
        }
        if length > SHOWN {
            shown.push("…".to_owned());
        }
        Ok(Label::Other(format!("[{}], not one-hot", shown.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_classes_only_where_each_row_is_one() {
        let ints = |v: &[i64]| Values::Integers(v.to_vec());
        let floats = |v: &[f64]| Values::Floats(v.to_vec());
        let classes = |v: &[i64]| Labels::Classes(v.to_vec());
        let problem = |labels: Labels| labels.problem().map(str::to_owned).unwrap_or_default();
        assert_eq!(of_array("l", &[3], &ints(&[2, 0, 1]), 3), classes(&[2, 0, 1]));
        assert_eq!(of_array("l", &[3, 1], &floats(&[2.0, 0.0, 1.0]), 3), classes(&[2, 0, 1]));
        assert_eq!(of_array("l", &[2, 3], &floats(&[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]), 2), classes(&[2, 0]));
        assert_eq!(of_array("l", &[1], &Values::Unsigned(vec![1 << 62]), 1), classes(&[1 << 62]));
        let cases = [
            (of_array("l", &[2], &ints(&[0, -1]), 2), "row 1 of `l` is -1"),
            (of_array("l", &[2], &floats(&[0.0, 0.7]), 2), "row 1 of `l` is 0.7"),
            (of_array("l", &[1], &floats(&[f64::NAN]), 1), "row 0 of `l` is NaN"),
            (of_array("l", &[1], &floats(&[1e300]), 1), "row 0"),
            (of_array("l", &[1], &Values::Unsigned(vec![u64::MAX]), 1), "18446744073709551615"),
            (of_array("l", &[1, 3], &ints(&[1, 0, 1]), 1), "[1, 0, 1], not one-hot"),
            (of_array("l", &[1, 2], &floats(&[0.5, 0.5]), 1), "not one-hot"),
            (of_array("l", &[1, 2], &ints(&[0, 0]), 1), "not one-hot"),
            (of_array("l", &[1, 2], &ints(&[0, 2]), 1), "not one-hot"),
            (of_array("l", &[3], &ints(&[0, 1, 2]), 4), "3 rows for 4 images"),
            (of_array("l", &[], &ints(&[0]), 1), "shape []"),
            (of_array("l", &[1, 0], &ints(&[]), 1), "shape [1, 0]"),
        ];
        for (labels, text) in cases {
            assert!(problem(labels.clone()).contains(text), "{labels:?}");
        }
    }

    #[test]
    fn json_labels_are_classes_only_where_every_image_has_one() {
        let read =
            |labels: &str| of_json(format!(r#"{{"labels": {labels}, "d2o": {{"x": [1]}}}}"#).as_bytes(), &["a", "b"]);
        let classes = |v: &[i64]| Labels::Classes(v.to_vec());
        assert_eq!(read(r#"[["a", 3], ["b", 1]]"#), classes(&[3, 1]));
        assert_eq!(read(r#"[["a", 3.0], ["b", 1.0], ["c", "other"]]"#), classes(&[3, 1]));
        assert_eq!(read(r#"[["a", [0, 1]], ["b", [1.0, 0.0]]]"#), classes(&[1, 0]));
        assert_eq!(read("null"), Labels::None);
        assert_eq!(read("[]"), Labels::None);
        assert_eq!(of_json(b"{}", &["a"]), Labels::None);
        let cases = [
            (r#"[["a", 1]]"#, "no label for 1 of 2 images, e.g. `b`"),
            (r#"[["a", 1], ["b", -1]]"#, "`b` in `dataset.json` is -1"),
            (r#"[["a", 1], ["b", "cat"]]"#, "is the text \"cat\""),
            (r#"[["a", [1, 0, 1]], ["b", [1, 0, 0]]]"#, "`a` in `dataset.json` is [1, 0, 1], not one-hot"),
            (r#"[["a", [1.0, 100.0]], ["b", [1, 0]]]"#, "[1, 100], not one-hot"),
            (r#"[["a", [0.9, 0.1]], ["b", [1, 0]]]"#, "[0.9, 0.1], not one-hot"),
            (r#"[["a", [0, 0]], ["b", [1, 0]]]"#, "[0, 0], not one-hot"),
            (r#"[["a", [[1]]], ["b", null]]"#, "not one-hot"),
            (r#"[["a", [0, [0, 1]]], ["b", 1]]"#, "[0, a vector], not one-hot"),
            (r#"[["a", {"x": 1}], ["b", 1]]"#, "an object"),
            (r#"[["a", null], ["b", 1]]"#, "null"),
            (r#"{"a": 1}"#, "not a list of [path, class]"),
            (r#"[["a"]]"#, "not a list of [path, class]"),
        ];
        for (labels, text) in cases {
            let found = read(labels);
            assert!(found.problem().is_some_and(|p| p.contains(text)), "{labels}: {found:?}");
        }
        assert!(of_json(b"\xff{", &["a"]).problem().is_some());
    }

    #[test]
    fn class_folders_are_classes_and_numbered_ones_are_not() {
        let read = |names: &[&str]| of_folders(names).classes().map(<[i64]>::to_vec);
        assert_eq!(read(&["cat/1.png", "cat/2.png", "dog/1.png"]), Some(vec![0, 0, 1]));
        assert_eq!(read(&["0/1.png", "1/1.png", "10/1.png", "2/1.png"]), Some(vec![0, 1, 2, 3]));
        for names in [
            &["cat/1.png", "cat/2.png"][..],
            &["1.png", "cat/2.png"],
            &["cat/1.png", "dog/a/2.png"],
            &["00000/img00000000.png", "00001/img00001000.png"],
            &["000000/000000.png", "001000/001000.png"],
            &["train/1.png", "val/2.png"],
            &[],
        ] {
            assert_eq!(read(names), None, "{names:?}");
        }
    }
}
