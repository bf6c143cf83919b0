//! Operators of `ai.onnx.ml` other than trees: scalers, linear models, and what stands around them.

use crate::evaluator::{Attributes, Labels, Prepared, Refusal};
use crate::proto::NodeProto;
use crate::{Data, Tensor};

pub(crate) fn prepare(node: &NodeProto) -> Result<Prepared, Refusal> {
    let attributes = Attributes::of(node);
    match &*node.op_type {
        "Scaler" => scaler(&attributes),
        "Normalizer" => normalizer(&attributes),
        "LinearClassifier" => classifier(&attributes),
        "LinearRegressor" => regressor(&attributes),
        "ArrayFeatureExtractor" => Ok(Box::new(extract)),
        "ZipMap" => Ok(Box::new(|inputs| Ok(vec![one(inputs)?.clone()]))),
        _ => Err(Refusal::Unsupported("the operator is not supported".into())),
    }
}

/// What scores become (attribute `post_transform`).
#[derive(Clone, Copy)]
pub(crate) enum PostTransform {
    None,
    Logistic,
    Softmax,
}

impl PostTransform {
    pub(crate) fn of(attributes: &Attributes<'_>) -> Result<Self, Refusal> {
        match attributes.text("post_transform", "NONE") {
            "NONE" => Ok(Self::None),
            "LOGISTIC" => Ok(Self::Logistic),
            "SOFTMAX" => Ok(Self::Softmax),
            other => Err(Refusal::Unsupported(format!("post_transform {other} is not supported"))),
        }
    }

    pub(crate) fn apply(self, scores: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            Self::Softmax => softmax(scores),
        }
    }
}

/// 1 / (1 + e⁻ˣ), without overflow on either side.
pub(crate) fn logistic(x: f32) -> f32 {
    let positive = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - positive } else { positive }
}

/// Each score's exponential by the sum of all.
pub(crate) fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// Index of the largest; of the first, if there are several; 0 if there is none.
pub(crate) fn largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best
}

/// The only input.
pub(crate) fn one<'a>(inputs: &[&'a Tensor]) -> Result<&'a Tensor, String> {
    match inputs {
        [input] => Ok(input),
        _ => Err(format!("it has {} inputs; it takes 1", inputs.len())),
    }
}

/// F32 of a shape that a computation made.
pub(crate) fn float_tensor(shape: Vec<usize>, data: Vec<f32>) -> Result<Tensor, String> {
    Tensor::new(shape, Data::F32(data)).ok_or_else(|| "its result is too large".into())
}

fn scaler(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let (offset, scale) = (attributes.floats("offset").to_vec(), attributes.floats("scale").to_vec());
    Ok(Box::new(move |inputs| {
        let input = one(inputs)?;
        let (_, columns) = input.matrix()?;
        for (name, values) in [("offset", &offset), ("scale", &scale)] {
            if ![1, columns].contains(&values.len()) {
                return Err(format!("{name} has {} values for {columns} columns", values.len()));
            }
        }
        let floats = input.floats()?;
        let mut out = Vec::with_capacity(floats.len());
        for row in floats.chunks_exact(columns.max(1)) {
            let scaled = row.iter().enumerate().map(|(i, x)| {
                (x - offset[if offset.len() == 1 { 0 } else { i }])
                    * scale[if scale.len() == 1 { 0 } else { i }]
            });
            out.extend(scaled);
        }
        Ok(vec![float_tensor(input.shape().to_vec(), out)?])
    }))
}

fn normalizer(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let norm: fn(&[f32]) -> f32 = match attributes.text("norm", "MAX") {
        "MAX" => |row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        "L1" => |row| row.iter().map(|x| x.abs()).sum(),
        "L2" => |row| row.iter().map(|x| x * x).sum::<f32>().sqrt(),
        other => return Err(Refusal::Unsupported(format!("norm {other} is not supported"))),
    };
    Ok(Box::new(move |inputs| {
        let input = one(inputs)?;
        let (_, columns) = input.matrix()?;
        let mut out = input.floats()?.to_vec();
        for row in out.chunks_exact_mut(columns.max(1)) {
            let by = norm(row);
            // A row of zeros stays one.
            if by != 0.0 {
                row.iter_mut().for_each(|x| *x /= by);
            }
        }
        Ok(vec![float_tensor(input.shape().to_vec(), out)?])
    }))
}

/// Rows times coefficients plus intercepts: `targets` scores a row.
struct Linear {
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    targets: usize,
}

impl Linear {
    fn of(attributes: &Attributes<'_>, targets: usize) -> Result<Self, String> {
        let (coefficients, intercepts) = (attributes.floats("coefficients"), attributes.floats("intercepts"));
        if targets == 0 || coefficients.is_empty() || !coefficients.len().is_multiple_of(targets) {
            return Err(format!("{} coefficients do not make {targets} targets", coefficients.len()));
        }
        if ![0, targets].contains(&intercepts.len()) {
            return Err(format!("{} intercepts for {targets} targets", intercepts.len()));
        }
        Ok(Self { coefficients: coefficients.to_vec(), intercepts: intercepts.to_vec(), targets })
    }

    fn scores(&self, input: &Tensor) -> Result<(usize, Vec<f32>), String> {
        let ((rows, columns), wanted) = (input.matrix()?, self.coefficients.len() / self.targets);
        if columns != wanted {
            return Err(format!("its input has {columns} columns; it takes {wanted}"));
        }
        let mut out = Vec::with_capacity(rows * self.targets);
        for row in input.floats()?.chunks_exact(columns) {
            for (target, weights) in self.coefficients.chunks_exact(columns).enumerate() {
                let sum: f32 = row.iter().zip(weights).map(|(x, w)| x * w).sum();
                out.push(sum + self.intercepts.get(target).copied().unwrap_or_default());
            }
        }
        Ok((rows, out))
    }
}

fn regressor(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let targets = usize::try_from(attributes.int("targets", 1)).unwrap_or(0);
    let (linear, transform) = (Linear::of(attributes, targets)?, PostTransform::of(attributes)?);
    Ok(Box::new(move |inputs| {
        let (rows, mut scores) = linear.scores(one(inputs)?)?;
        scores.chunks_exact_mut(linear.targets).for_each(|row| transform.apply(row));
        Ok(vec![float_tensor(vec![rows, linear.targets], scores)?])
    }))
}

fn classifier(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let labels: Labels = attributes.labels("classlabels_ints", "classlabels_strings")?;
    let intercepts = attributes.floats("intercepts").len();
    if labels.len() < 2 || intercepts == 1 {
        return Err(Refusal::Unsupported("one score for two classes is not supported".into()));
    }
    let (linear, transform) = (Linear::of(attributes, labels.len())?, PostTransform::of(attributes)?);
    Ok(Box::new(move |inputs| {
        let (rows, mut scores) = linear.scores(one(inputs)?)?;
        let classes: Vec<usize> = scores.chunks_exact(linear.targets).map(largest).collect();
        scores.chunks_exact_mut(linear.targets).for_each(|row| transform.apply(row));
        Ok(vec![labels.pick(&classes)?, float_tensor(vec![rows, linear.targets], scores)?])
    }))
}

/// Picks elements of the last axis.
fn extract(inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let [input, indices] = inputs else { return Err(format!("it has {} inputs; it takes 2", inputs.len())) };
    let Some((&columns, before)) = input.shape().split_last() else {
        return Err("its input is a scalar".into());
    };
    let picked: Option<Vec<usize>> =
        indices.integers()?.iter().map(|i| usize::try_from(*i).ok().filter(|i| *i < columns)).collect();
    let picked = picked.ok_or_else(|| format!("an index is outside the {columns} columns"))?;
    let rows: usize = before.iter().product();
    fn of<T: Clone>(all: &[T], rows: usize, columns: usize, picked: &[usize]) -> Vec<T> {
        (0..rows).flat_map(|row| picked.iter().map(move |i| all[row * columns + i].clone())).collect()
    }
    macro_rules! picked {
        ($($variant:ident)*) => {
            match input.data() {
                $(Data::$variant(v) => Data::$variant(of(v, rows, columns, &picked)),)*
            }
        };
    }
    let data = picked! { F16 F32 F64 I8 I16 I32 I64 U8 U16 U32 U64 Bool Text };
    // One dimension becomes one row.
    let shape = if before.is_empty() { vec![1] } else { before.to_vec() };
    let shape = [shape, vec![picked.len()]].concat();
    Ok(vec![Tensor::new(shape, data).ok_or("its result is too large")?])
}
