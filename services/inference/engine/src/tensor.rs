//! Tensors: a shape, and elements in row-major order.

use std::fmt;

use crate::proto::TensorProto;

/// Most elements of one tensor: what is larger is refused before memory is asked for.
pub(crate) const MAX_ELEMENTS: usize = 1 << 27;

/// Types of elements, a part of ONNX's (TensorProto.DataType).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DataType {
    F32,
    F64,
    I32,
    I64,
    Bool,
    Text,
}

impl DataType {
    /// Of a number of ONNX's enumeration.
    pub(crate) fn from_onnx(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::F32,
            6 => Self::I32,
            7 => Self::I64,
            8 => Self::Text,
            9 => Self::Bool,
            11 => Self::F64,
            _ => return None,
        })
    }
}

impl fmt::Display for DataType {
    /// As the Open Inference Protocol calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "FP32",
            Self::F64 => "FP64",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::Bool => "BOOL",
            Self::Text => "BYTES",
        })
    }
}

/// Elements, all of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
    Text(Vec<String>),
}

impl Data {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Text(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of which type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::F32(_) => DataType::F32,
            Self::F64(_) => DataType::F64,
            Self::I32(_) => DataType::I32,
            Self::I64(_) => DataType::I64,
            Self::Bool(_) => DataType::Bool,
            Self::Text(_) => DataType::Text,
        }
    }
}

/// A tensor: as many elements as its shape says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// Of a shape and its elements in row-major order; `None` if the two do not agree, or are too many.
    pub fn new(shape: Vec<usize>, data: Data) -> Option<Self> {
        (elements(&shape)? == data.len()).then_some(Self { shape, data })
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements in row-major order.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Takes it apart.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// Elements of type F32.
    pub(crate) fn floats(&self) -> Result<&[f32], String> {
        match &self.data {
            Data::F32(v) => Ok(v),
            other => Err(format!("its input is {}, which is not supported; FP32 is", other.data_type())),
        }
    }

    /// Elements of type I64.
    pub(crate) fn integers(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::I64(v) => Ok(v),
            other => Err(format!("an input is {}; it must be INT64", other.data_type())),
        }
    }

    /// Rows and columns; one dimension is one row.
    pub(crate) fn matrix(&self) -> Result<(usize, usize), String> {
        match *self.shape {
            [columns] => Ok((1, columns)),
            [rows, columns] => Ok((rows, columns)),
            _ => Err(format!("its input has {} dimensions; it must have 2", self.shape.len())),
        }
    }

    /// Of a model file.
    pub(crate) fn from_proto(proto: &TensorProto) -> Result<Self, String> {
        if proto.data_location != 0 {
            return Err("its data lie in another file; export the model into one file".into());
        }
        let shape: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let shape = shape.ok_or("a dimension is negative")?;
        let data_type = DataType::from_onnx(proto.data_type.into())
            .ok_or_else(|| format!("elements of ONNX's type {} are not supported", proto.data_type))?;
        let raw = &proto.raw_data;
        let data = match data_type {
            DataType::F32 if raw.is_empty() => Data::F32(proto.float_data.clone()),
            DataType::F64 if raw.is_empty() => Data::F64(proto.double_data.clone()),
            DataType::I32 if raw.is_empty() => Data::I32(proto.int32_data.clone()),
            DataType::I64 if raw.is_empty() => Data::I64(proto.int64_data.clone()),
            DataType::Bool if raw.is_empty() => {
                Data::Bool(proto.int32_data.iter().map(|b| *b != 0).collect())
            }
            DataType::F32 => Data::F32(chunks(raw)?.map(f32::from_le_bytes).collect()),
            DataType::F64 => Data::F64(chunks(raw)?.map(f64::from_le_bytes).collect()),
            DataType::I32 => Data::I32(chunks(raw)?.map(i32::from_le_bytes).collect()),
            DataType::I64 => Data::I64(chunks(raw)?.map(i64::from_le_bytes).collect()),
            DataType::Bool => Data::Bool(raw.iter().map(|b| *b != 0).collect()),
            DataType::Text => Data::Text(texts(&proto.string_data)?),
        };
        let count = data.len();
        Self::new(shape, data).ok_or_else(|| format!("it has {count} elements, which its shape does not"))
    }
}

/// How many elements a shape has, unless they are too many.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1_usize, |product, d| product.checked_mul(*d))?;
    (count <= MAX_ELEMENTS).then_some(count)
}

/// Strings of a model file, which must be UTF-8.
pub(crate) fn texts(bytes: &[Vec<u8>]) -> Result<Vec<String>, String> {
    let all = bytes.iter().map(|b| String::from_utf8(b.clone()));
    all.collect::<Result<_, _>>().map_err(|_| "a string is not UTF-8".into())
}

fn chunks<const N: usize>(raw: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, String> {
    let (chunks, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(format!("its data of {} bytes end within an element", raw.len()));
    }
    Ok(chunks.iter().copied())
}
