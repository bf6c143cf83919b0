//! Tensors: a shape, and elements in row-major order.

use std::fmt;

use half::f16;

use crate::proto::TensorProto;

/// Most elements of one tensor: what is larger is refused before memory is asked for.
pub(crate) const MAX_ELEMENTS: usize = 1 << 27;

/// The types of elements: of each, what the Open Inference Protocol calls it, its number in ONNX's TensorProto.DataType, and what an
/// element is here.
macro_rules! data_types {
    ($($variant:ident($element:ty) = $name:literal, $number:literal;)*) => {
        /// Types of elements, a part of ONNX's (TensorProto.DataType).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum DataType {
            $($variant,)*
        }

        impl DataType {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Of a number of ONNX's enumeration.
            pub(crate) fn from_onnx(number: i64) -> Option<Self> {
                Some(match number {
                    $($number => Self::$variant,)*
                    _ => return None,
                })
            }
        }

        impl fmt::Display for DataType {
            /// As the Open Inference Protocol calls it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name,)*
                })
            }
        }

        /// Elements, all of one type.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Data {
            $($variant(Vec<$element>),)*
        }

        impl Data {
            /// How many.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(v) => v.len(),)*
                }
            }

            /// Of which type.
            pub fn data_type(&self) -> DataType {
                match self {
                    $(Self::$variant(_) => DataType::$variant,)*
                }
            }

            /// Adds elements of the same type behind; `None`, and no change, if they are of another.
            fn append(&mut self, more: &Self) -> Option<()> {
                match (self, more) {
                    $((Self::$variant(v), Self::$variant(more)) => v.extend_from_slice(more),)*
                    _ => return None,
                }
                Some(())
            }

            /// The elements from one place up to another; `None` if they are not there.
            fn part(&self, range: std::ops::Range<usize>) -> Option<Self> {
                Some(match self {
                    $(Self::$variant(v) => Self::$variant(v.get(range)?.to_vec()),)*
                })
            }
        }
    };
}

data_types! {
    F16(f16) = "FP16", 10;
    F32(f32) = "FP32", 1;
    F64(f64) = "FP64", 11;
    I8(i8) = "INT8", 3;
    I16(i16) = "INT16", 5;
    I32(i32) = "INT32", 6;
    I64(i64) = "INT64", 7;
    U8(u8) = "UINT8", 2;
    U16(u16) = "UINT16", 4;
    U32(u32) = "UINT32", 12;
    U64(u64) = "UINT64", 13;
    Bool(bool) = "BOOL", 9;
    Text(String) = "BYTES", 8;
}

impl Data {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// One behind the other along the first dimension; `None` if their types or other dimensions differ, or all are too large.
    pub(crate) fn joined<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next()?.clone();
        all.shape.first()?;
        for part in parts {
            let (rows, row) = part.shape.split_first()?;
            if row != &all.shape[1..] {
                return None;
            }
            all.shape[0] = all.shape[0].checked_add(*rows)?;
            elements(&all.shape)?;
            all.data.append(&part.data)?;
        }
        Some(all)
    }

    /// So many rows from a place on; `None` if they are not there.
    pub(crate) fn rows(&self, from: usize, count: usize) -> Option<Self> {
        let (rows, row) = self.shape.split_first()?;
        let to = from.checked_add(count).filter(|to| to <= rows)?;
        let length: usize = row.iter().product();
        Self::new([&[count], row].concat(), self.data.part(from * length..to * length)?)
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
        // Without raw data, each type has its field (onnx.proto, TensorProto); small ones share that of INT32.
        let small = &proto.int32_data;
        let data = match data_type {
            DataType::Text => Data::Text(texts(&proto.string_data)?),
            DataType::F32 if raw.is_empty() => Data::F32(proto.float_data.clone()),
            DataType::F64 if raw.is_empty() => Data::F64(proto.double_data.clone()),
            DataType::I32 if raw.is_empty() => Data::I32(small.clone()),
            DataType::I64 if raw.is_empty() => Data::I64(proto.int64_data.clone()),
            DataType::U64 if raw.is_empty() => Data::U64(proto.uint64_data.clone()),
            DataType::U32 if raw.is_empty() => Data::U32(fitted(&proto.uint64_data)?),
            DataType::I8 if raw.is_empty() => Data::I8(fitted(small)?),
            DataType::I16 if raw.is_empty() => Data::I16(fitted(small)?),
            DataType::U8 if raw.is_empty() => Data::U8(fitted(small)?),
            DataType::U16 if raw.is_empty() => Data::U16(fitted(small)?),
            DataType::F16 if raw.is_empty() => {
                Data::F16(fitted::<_, u16>(small)?.into_iter().map(f16::from_bits).collect())
            }
            DataType::Bool if raw.is_empty() => Data::Bool(small.iter().map(|b| *b != 0).collect()),
            DataType::F16 => Data::F16(chunks(raw)?.map(f16::from_le_bytes).collect()),
            DataType::F32 => Data::F32(chunks(raw)?.map(f32::from_le_bytes).collect()),
            DataType::F64 => Data::F64(chunks(raw)?.map(f64::from_le_bytes).collect()),
            DataType::I8 => Data::I8(chunks(raw)?.map(i8::from_le_bytes).collect()),
            DataType::I16 => Data::I16(chunks(raw)?.map(i16::from_le_bytes).collect()),
            DataType::I32 => Data::I32(chunks(raw)?.map(i32::from_le_bytes).collect()),
            DataType::I64 => Data::I64(chunks(raw)?.map(i64::from_le_bytes).collect()),
            DataType::U8 => Data::U8(raw.clone()),
            DataType::U16 => Data::U16(chunks(raw)?.map(u16::from_le_bytes).collect()),
            DataType::U32 => Data::U32(chunks(raw)?.map(u32::from_le_bytes).collect()),
            DataType::U64 => Data::U64(chunks(raw)?.map(u64::from_le_bytes).collect()),
            DataType::Bool => Data::Bool(raw.iter().map(|b| *b != 0).collect()),
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

fn fitted<From: Copy, To: TryFrom<From>>(values: &[From]) -> Result<Vec<To>, String> {
    let all =
        values.iter().map(|value| To::try_from(*value).map_err(|_| "an element is outside its type's range"));
    Ok(all.collect::<Result<_, _>>()?)
}

fn chunks<const N: usize>(raw: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, String> {
    let (chunks, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(format!("its data of {} bytes end within an element", raw.len()));
    }
    Ok(chunks.iter().copied())
}
