//! Operators of ONNX's own domain (operator sets 13 and later) that exports of scikit-learn's models need.

use half::f16;

use crate::evaluator::{Attributes, Prepared, Refusal};
use crate::linear::{float_tensor, largest, logistic, one, softmax};
use crate::proto::NodeProto;
use crate::tensor::elements;
use crate::{Data, DataType, Tensor};

pub(crate) fn prepare(node: &NodeProto) -> Result<Prepared, Refusal> {
    let attributes = Attributes::of(node);
    match &*node.op_type {
        "Identity" => Ok(Box::new(|inputs| Ok(vec![one(inputs)?.clone()]))),
        "Cast" => cast(&attributes),
        "Reshape" if attributes.int("allowzero", 0) != 0 => {
            Err(Refusal::Unsupported("allowzero is not supported".into()))
        }
        "Reshape" => Ok(Box::new(reshape)),
        "Concat" => Ok(concat(attributes.int("axis", 0))),
        "MatMul" => Ok(Box::new(multiply)),
        "Add" => Ok(elementwise(|a, b| a + b)),
        "Sub" => Ok(elementwise(|a, b| a - b)),
        "Mul" => Ok(elementwise(|a, b| a * b)),
        "Div" => Ok(elementwise(|a, b| a / b)),
        "Relu" => Ok(map(|x| x.max(0.0))),
        "Sigmoid" => Ok(map(logistic)),
        "Tanh" => Ok(map(f32::tanh)),
        "Softmax" => Ok(over_last_axis(attributes.int("axis", -1), |rows, columns| {
            let mut out = rows.to_vec();
            out.chunks_exact_mut(columns).for_each(softmax);
            (columns, Data::F32(out))
        })),
        "ArgMax" => {
            if attributes.int("select_last_index", 0) != 0 {
                return Err(Refusal::Unsupported("select_last_index is not supported".into()));
            }
            let keep = attributes.int("keepdims", 1) != 0;
            let find = over_last_axis(attributes.int("axis", 0), |rows, columns| {
                (1, Data::I64(rows.chunks_exact(columns).map(|row| largest(row) as i64).collect()))
            });
            Ok(Box::new(move |inputs| {
                let found = find(inputs)?;
                match keep {
                    true => Ok(found),
                    false => found.into_iter().map(without_last_axis).collect(),
                }
            }))
        }
        _ => Err(Refusal::Unsupported("the operator is not supported".into())),
    }
}

fn map(f: fn(f32) -> f32) -> Prepared {
    Box::new(move |inputs| {
        let input = one(inputs)?;
        Ok(vec![float_tensor(input.shape().to_vec(), input.floats()?.iter().map(|x| f(*x)).collect())?])
    })
}

fn two<'a>(inputs: &[&'a Tensor]) -> Result<[&'a Tensor; 2], String> {
    <[&Tensor; 2]>::try_from(inputs).map_err(|_| format!("it has {} inputs; it takes 2", inputs.len()))
}

/// A function of pairs, with broadcasting ("Broadcasting in ONNX", multidirectional).
fn elementwise(f: fn(f32, f32) -> f32) -> Prepared {
    Box::new(move |inputs| {
        let [a, b] = two(inputs)?;
        let (x, y) = (a.floats()?, b.floats()?);
        if a.shape() == b.shape() {
            let all = x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect();
            return Ok(vec![float_tensor(a.shape().to_vec(), all)?]);
        }
        let dimensions = a.shape().len().max(b.shape().len());
        let padded = |t: &Tensor| [vec![1; dimensions - t.shape().len()], t.shape().to_vec()].concat();
        let (left, right) = (padded(a), padded(b));
        let mut shape = Vec::with_capacity(dimensions);
        for (l, r) in left.iter().zip(&right) {
            shape.push(match (*l, *r) {
                (l, r) if l == r => l,
                (1, r) => r,
                (l, 1) => l,
                _ => return Err(format!("{:?} and {:?} do not go together", a.shape(), b.shape())),
            });
        }
        let count = elements(&shape).ok_or("its result is too large")?;
        let (of_left, of_right) = (strides(&left), strides(&right));
        let mut at = vec![0; dimensions];
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let place = |strides: &[usize]| at.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>();
            out.push(f(x[place(&of_left)], y[place(&of_right)]));
            for axis in (0..dimensions).rev() {
                at[axis] += 1;
                if at[axis] < shape[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Ok(vec![float_tensor(shape, out)?])
    })
}

/// Elements between neighbours of each axis; 0 where the one element stands for all.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    let mut step = 1;
    for axis in (0..shape.len()).rev() {
        out[axis] = if shape[axis] == 1 { 0 } else { step };
        step *= shape[axis];
    }
    out
}

/// Product of two matrices.
fn multiply(inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let [a, b] = two(inputs)?;
    let ([rows, inner], [depth, columns]) = (a.shape(), b.shape()) else {
        return Err(format!("{:?} and {:?}: only matrices are supported", a.shape(), b.shape()));
    };
    let (rows, inner, columns) = (*rows, *inner, *columns);
    if inner != *depth {
        return Err(format!("{:?} and {:?} do not go together", a.shape(), b.shape()));
    }
    let (x, y) = (a.floats()?, b.floats()?);
    let mut out = vec![0.0; elements(&[rows, columns]).ok_or("its result is too large")?];
    if columns > 0 && inner > 0 {
        for (row, result) in x.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
            for (factor, line) in row.iter().zip(y.chunks_exact(columns)) {
                result.iter_mut().zip(line).for_each(|(sum, y)| *sum += factor * y);
            }
        }
    }
    Ok(vec![float_tensor(vec![rows, columns], out)?])
}

/// A function of rows along the last axis; it gives the new length of that axis, and all elements.
fn over_last_axis(axis: i64, f: fn(&[f32], usize) -> (usize, Data)) -> Prepared {
    Box::new(move |inputs| {
        let input = one(inputs)?;
        let last = input.shape().len() as i64 - 1;
        if axis != -1 && axis != last {
            return Err(format!("axis {axis} of {:?} is not supported; the last is", input.shape()));
        }
        let Some((&columns, before)) = input.shape().split_last().filter(|(columns, _)| **columns > 0) else {
            return Err("its input has an empty last axis".into());
        };
        let (length, data) = f(input.floats()?, columns);
        let shape = [before, &[length]].concat();
        Ok(vec![Tensor::new(shape, data).ok_or("its result is too large")?])
    })
}

fn without_last_axis(tensor: Tensor) -> Result<Tensor, String> {
    let shape = tensor.shape().split_last().map(|(_, before)| before.to_vec()).unwrap_or_default();
    Tensor::new(shape, tensor.into_data()).ok_or_else(|| "its result is too large".into())
}

fn reshape(inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let [input, wanted] = two(inputs)?;
    let wanted = wanted.integers()?;
    let mut shape = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (axis, length) in wanted.iter().enumerate() {
        shape.push(match *length {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 => *input.shape().get(axis).ok_or("the new shape copies an axis that is not there")?,
            length => usize::try_from(length).map_err(|_| format!("the new shape is {wanted:?}"))?,
        });
    }
    let (is, others) = (input.data().len(), elements(&shape).ok_or("the new shape is too large")?);
    if let Some(axis) = open {
        shape[axis] = is.checked_div(others).unwrap_or_default();
    }
    let reshaped = Tensor::new(shape, input.data().clone());
    Ok(vec![reshaped.ok_or_else(|| format!("{:?} cannot have the shape {wanted:?}", input.shape()))?])
}

fn concat(axis: i64) -> Prepared {
    Box::new(move |inputs| {
        let first = *inputs.first().ok_or("it has no input")?;
        let dimensions = first.shape().len();
        let axis = if axis < 0 { axis + dimensions as i64 } else { axis };
        let axis = usize::try_from(axis).ok().filter(|a| *a < dimensions).ok_or("there is no such axis")?;
        let mut length = 0;
        for input in inputs {
            let fits = input.shape().len() == dimensions
                && (0..dimensions).all(|d| d == axis || input.shape()[d] == first.shape()[d]);
            if !fits {
                return Err(format!("{:?} and {:?} do not go together", first.shape(), input.shape()));
            }
            length += input.shape()[axis];
        }
        let mut shape = first.shape().to_vec();
        shape[axis] = length;
        let count = elements(&shape).ok_or("its result is too large")?;
        let outer: usize = shape[..axis].iter().product();
        let mut out = Vec::with_capacity(count);
        for block in 0..outer {
            for input in inputs {
                let size: usize = input.shape()[axis..].iter().product();
                out.extend_from_slice(&input.floats()?[block * size..(block + 1) * size]);
            }
        }
        Ok(vec![float_tensor(shape, out)?])
    })
}

fn cast(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let to = attributes.int("to", 0);
    let to = DataType::from_onnx(to)
        .ok_or_else(|| Refusal::Unsupported(format!("casting to ONNX's type {to} is not supported")))?;
    Ok(Box::new(move |inputs| {
        let input = one(inputs)?;
        if input.data().data_type() == to {
            return Ok(vec![input.clone()]);
        }
        // All pairs go through a type that holds both; floats are cut off towards zero.
        let data = match input.data() {
            Data::F16(v) => from_floats(v.iter().map(|x| f64::from(*x)), to),
            Data::F32(v) => from_floats(v.iter().map(|x| f64::from(*x)), to),
            Data::F64(v) => from_floats(v.iter().copied(), to),
            Data::I8(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::I16(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::I32(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::I64(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::U8(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::U16(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::U32(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::U64(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::Bool(v) => from_integers(v.iter().map(|x| i128::from(*x)), to),
            Data::Text(_) => None,
        };
        let data =
            data.ok_or_else(|| format!("casting {} to {to} is not supported", input.data().data_type()))?;
        Ok(vec![Tensor::new(input.shape().to_vec(), data).ok_or("its result is too large")?])
    }))
}

/// What numbers are cast to: of each type how, and what counts as true.
macro_rules! cast_from {
    ($name:ident, $from:ty, $to_half:expr, $zero:expr) => {
        fn $name(values: impl Iterator<Item = $from>, to: DataType) -> Option<Data> {
            Some(match to {
                DataType::F16 => Data::F16(values.map($to_half).collect()),
                DataType::F32 => Data::F32(values.map(|x| x as f32).collect()),
                DataType::F64 => Data::F64(values.map(|x| x as f64).collect()),
                DataType::I8 => Data::I8(values.map(|x| x as i8).collect()),
                DataType::I16 => Data::I16(values.map(|x| x as i16).collect()),
                DataType::I32 => Data::I32(values.map(|x| x as i32).collect()),
                DataType::I64 => Data::I64(values.map(|x| x as i64).collect()),
                DataType::U8 => Data::U8(values.map(|x| x as u8).collect()),
                DataType::U16 => Data::U16(values.map(|x| x as u16).collect()),
                DataType::U32 => Data::U32(values.map(|x| x as u32).collect()),
                DataType::U64 => Data::U64(values.map(|x| x as u64).collect()),
                DataType::Bool => Data::Bool(values.map(|x| x != $zero).collect()),
                DataType::Text => return None,
            })
        }
    };
}

cast_from!(from_floats, f64, f16::from_f64, 0.0);
cast_from!(from_integers, i128, |x| f16::from_f64(x as f64), 0);
