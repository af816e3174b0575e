//! Reads what an exporter says: a strict parser of Prometheus' exposition format 0.0.4.

use crate::exposition::shown_name;
use crate::instrument::Instrument;
use kiln_types::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// All samples that one process told at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// The samples in their order.
    pub samples: Vec<Sample>,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name with everything behind it, as `_bucket`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

/// Buckets: upper bounds and how many values were not above them, both ascending.
pub type Buckets = Vec<(f64, f64)>;

impl Scrape {
    /// Parses a whole text.
    ///
    /// # Errors
    /// `Corrupt`, with the line, when it breaks the format: no type, samples of one metric apart
    /// from each other, the same sample twice, buckets that do not add up.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader::default();
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(Error::corrupt("metrics: the last line has no end"));
        }
        for (at, line) in text.lines().enumerate() {
            reader.line(line).map_err(|what| {
                Error::corrupt(format!("metrics, line {}: {what}: {line:.120}", at + 1))
            })?;
        }
        reader.close().map_err(|what| Error::corrupt(format!("metrics: {what}")))?;
        Ok(Self { samples: reader.samples })
    }

    /// The sum over all labels of the samples `name`; `None` when there are none.
    pub fn total(&self, name: &str) -> Option<f64> {
        let mut values = self.named(name).map(|sample| sample.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// [`Self::total`] of a metric of this version of kiln; 0 when there is none.
    pub fn of(&self, instrument: &dyn Instrument) -> f64 {
        self.total(&shown_name(instrument)).unwrap_or(0.0)
    }

    /// The buckets of a histogram, over all labels.
    pub fn buckets(&self, instrument: &dyn Instrument) -> Buckets {
        let name = shown_name(instrument) + "_bucket";
        let mut buckets = Buckets::new();
        for sample in self.named(&name) {
            let Some(bound) = sample.bound() else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets
    }

    /// The label `label` of the first sample `name`.
    pub fn label(&self, name: &str, label: &str) -> Option<&str> {
        let sample = self.samples.iter().find(|sample| sample.name == name)?;
        sample.labels.get(label).map(String::as_str)
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

impl Sample {
    fn bound(&self) -> Option<f64> {
        self.labels.get("le")?.parse().ok()
    }
}

type Checked<T = ()> = std::result::Result<T, &'static str>;

#[derive(Default)]
struct Reader {
    samples: Vec<Sample>,
    helped: BTreeSet<String>,
    types: BTreeMap<String, String>,
    seen: BTreeSet<(String, Vec<(String, String)>)>,
    /// The metric whose samples come now; those before it are over.
    current: String,
    over: BTreeSet<String>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Checked {
        if let Some(comment) = line.strip_prefix('#') {
            return self.comment(comment.trim_start_matches(' '));
        }
        if line.is_empty() {
            return Ok(());
        }
        let sample = sample(line)?;
        let family = self.family(&sample.name)?;
        self.enter(&family)?;
        if self.types[&family] == "counter" && sample.value < 0.0 {
            return Err("a counter below zero");
        }
        let labels = sample.labels.clone().into_iter().collect();
        if !self.seen.insert((sample.name.clone(), labels)) {
            return Err("the same sample twice");
        }
        self.samples.push(sample);
        Ok(())
    }

    fn comment(&mut self, comment: &str) -> Checked {
        let (keyword, rest) = comment.split_once(' ').unwrap_or((comment, ""));
        let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match keyword {
            "HELP" => {
                check_name(name)?;
                unescape(text, false)?;
                self.helped.insert(name.into()).then_some(()).ok_or("a second HELP")
            }
            "TYPE" => {
                check_name(name)?;
                if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&text) {
                    return Err("an unknown type");
                }
                self.enter(name)?;
                match self.types.insert(name.into(), text.into()) {
                    None => Ok(()),
                    Some(_) => Err("a second TYPE"),
                }
            }
            _ => Ok(()),
        }
    }

    /// The metric of a sample: it has a type, and only histograms have suffixes.
    fn family(&self, name: &str) -> Checked<String> {
        for suffix in ["_bucket", "_sum", "_count"] {
            if let Some(base) = name.strip_suffix(suffix)
                && self.types.get(base).is_some_and(|kind| kind == "histogram")
            {
                return Ok(base.into());
            }
        }
        match self.types.get(name).map(String::as_str) {
            None => Err("a sample without a TYPE before it"),
            Some("histogram") => Err("a histogram has only buckets, sum and count"),
            Some(_) => Ok(name.into()),
        }
    }

    fn enter(&mut self, family: &str) -> Checked {
        if self.current == family {
            return Ok(());
        }
        if self.over.contains(family) {
            return Err("samples of one metric are apart from each other");
        }
        self.over.insert(std::mem::replace(&mut self.current, family.into()));
        Ok(())
    }

    /// Checks what only the whole shows: the buckets of each histogram.
    fn close(&self) -> Checked {
        let mut counts = BTreeMap::<_, (Buckets, Option<f64>)>::new();
        for (name, kind) in &self.types {
            for sample in self.samples.iter().filter(|_| kind == "histogram") {
                let mut labels = sample.labels.clone();
                let bound = labels.remove("le");
                match sample.name.strip_prefix(name.as_str()) {
                    Some("_bucket") => {
                        let bound = bound.ok_or("a bucket without le")?;
                        let bound = bound.parse().map_err(|_| "le is not a number")?;
                        counts.entry((name, labels)).or_default().0.push((bound, sample.value));
                    }
                    Some("_count") => {
                        counts.entry((name, labels)).or_default().1 = Some(sample.value);
                    }
                    _ => {}
                }
            }
        }
        counts.into_values().try_for_each(|(buckets, count)| check_buckets(&buckets, count))
    }
}

fn check_buckets(buckets: &Buckets, count: Option<f64>) -> Checked {
    let ascending = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
    match buckets.last() {
        _ if !buckets.windows(2).all(ascending) => Err("buckets are not cumulative"),
        Some((bound, all)) if *bound == f64::INFINITY && Some(*all) == count => Ok(()),
        _ => Err("the last bucket is not +Inf with the count of all"),
    }
}

fn sample(line: &str) -> Checked<Sample> {
    let end = line.find(['{', ' ']).ok_or("a sample without a value")?;
    let (name, rest) = line.split_at(end);
    check_name(name)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let value = value.parse().map_err(|_| "the value is not a number")?;
    Ok(Sample { name: name.into(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Checked<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
        check_name(name)?;
        let mut escaped = false;
        let end = behind.find(|c| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let (value, behind) = behind.split_at(end.ok_or("a label's value does not end")?);
        if labels.insert(name.into(), unescape(value, true)?).is_some() {
            return Err("a label twice");
        }
        rest = &behind[1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn check_name(name: &str) -> Checked {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let others = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (first && others).then_some(()).ok_or("not a name")
}

fn unescape(text: &str, quotes: bool) -> Checked<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        plain.push(match next {
            '\\' => match chars.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('"') if quotes => '"',
                _ => return Err("an unknown escape"),
            },
            next => next,
        });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTOGRAM: &str = "# TYPE h histogram\n\
        h_bucket{op=\"a\",le=\"1\"} 2\nh_bucket{op=\"a\",le=\"+Inf\"} 3\nh_sum{op=\"a\"} 9\n\
        h_count{op=\"a\"} 3\n";

    #[test]
    fn a_text_is_read_with_its_labels() {
        let text = "# HELP c A \\\\ and \\n.\n# TYPE c counter\n# UNIT c bytes\n\
            c{disk=\"a\\\\b\\\"c\\nd}\",x=\"\"} 1.5\nc 2\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.samples.len(), 2);
        assert_eq!(scrape.label("c", "disk"), Some("a\\b\"c\nd}"));
        assert_eq!(scrape.total("c"), Some(3.5));
        assert_eq!(scrape.total("d"), None);
        assert!(Scrape::parse(HISTOGRAM).is_ok());
    }

    #[test]
    fn what_breaks_the_format_is_refused() {
        let wrong = [
            "c 1\n",
            "# TYPE c counter\nc 1",
            "# TYPE c counter\nc -1\n",
            "# TYPE c counter\nc 1\nc 1\n",
            "# TYPE c counter\n# TYPE c counter\n",
            "# HELP c a\n# HELP c b\n",
            "# HELP c \\x\n",
            "# TYPE c thing\n",
            "# TYPE c gauge\n# TYPE d gauge\nc 1\nd 1\nc{a=\"b\"} 1\n",
            "# TYPE c gauge\nc{a=\"b\" 1\n",
            "# TYPE c gauge\nc{a=\"b\",a=\"c\"} 1\n",
            "# TYPE c gauge\nc{a=\"b\\x\"} 1\n",
            "# TYPE c gauge\nc{1=\"b\"} 1\n",
            "# TYPE c gauge\nc one\n",
            "# TYPE c gauge\nc\n",
        ];
        for text in wrong {
            assert!(Scrape::parse(text).is_err(), "{text}");
        }
        for (from, to) in [("le=\"1\"} 2", "le=\"1\"} 4"), ("\"} 3\nh_sum", "\"} 4\nh_sum")] {
            assert!(Scrape::parse(&HISTOGRAM.replacen(from, to, 1)).is_err(), "{to}");
        }
        let unbounded = HISTOGRAM.replacen("h_bucket{op=\"a\",le=\"+Inf\"} 3\n", "", 1);
        assert!(Scrape::parse(&unbounded).is_err());
    }
}
