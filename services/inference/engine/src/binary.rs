//! Elements as the Open Inference Protocol's extension for binary tensors has them: little-endian, one behind the other; texts
//! with their lengths in 32 bits before them.

use half::f16;

use crate::{Data, DataType};

/// A type of elements of one size.
trait Element: Sized {
    type Bytes: for<'a> TryFrom<&'a [u8]> + AsRef<[u8]>;
    const SIZE: usize;

    /// `None`: not a value of the type.
    fn from_le(bytes: Self::Bytes) -> Option<Self>;
    fn to_le(&self) -> Self::Bytes;
}

impl Element for bool {
    type Bytes = [u8; 1];
    const SIZE: usize = 1;

    fn from_le(bytes: Self::Bytes) -> Option<Self> {
        match bytes {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn to_le(&self) -> Self::Bytes {
        [u8::from(*self)]
    }
}

macro_rules! numbers {
    ($($variant:ident($element:ty))*) => {
        $(impl Element for $element {
            type Bytes = [u8; size_of::<Self>()];
            const SIZE: usize = size_of::<Self>();

            fn from_le(bytes: Self::Bytes) -> Option<Self> {
                Some(Self::from_le_bytes(bytes))
            }

            fn to_le(&self) -> Self::Bytes {
                self.to_le_bytes()
            }
        })*

        impl Data {
            /// Elements in binary.
            ///
            /// # Errors
            /// When the bytes end within an element, or are not values of the type.
            pub fn from_binary(data_type: DataType, bytes: &[u8]) -> Result<Self, String> {
                Ok(match data_type {
                    $(DataType::$variant => Self::$variant(little_endian(bytes)?),)*
                    DataType::Bool => Self::Bool(little_endian(bytes)?),
                    DataType::Text => Self::Text(texts(bytes)?),
                })
            }

            /// Appends the elements in binary.
            ///
            /// # Errors
            /// When a text is longer than its length can say.
            pub fn to_binary(&self, out: &mut Vec<u8>) -> Result<(), String> {
                match self {
                    $(Self::$variant(v) => v.iter().for_each(|x| out.extend(x.to_le())),)*
                    Self::Bool(v) => v.iter().for_each(|x| out.extend(x.to_le())),
                    Self::Text(v) => {
                        for text in v {
                            let length = u32::try_from(text.len()).map_err(|_| "a text is longer than 4 GiB")?;
                            out.extend(length.to_le_bytes());
                            out.extend(text.as_bytes());
                        }
                    }
                }
                Ok(())
            }
        }
    };
}

numbers! { F16(f16) F32(f32) F64(f64) I8(i8) I16(i16) I32(i32) I64(i64) U8(u8) U16(u16) U32(u32) U64(u64) }

fn little_endian<T: Element>(bytes: &[u8]) -> Result<Vec<T>, String> {
    if !bytes.len().is_multiple_of(T::SIZE) {
        return Err(format!(
            "{} bytes of binary data are not a number of elements of {} bytes",
            bytes.len(),
            T::SIZE
        ));
    }
    let elements = bytes.chunks_exact(T::SIZE).enumerate().map(|(place, chunk)| {
        let element = T::Bytes::try_from(chunk).ok().and_then(T::from_le);
        element.ok_or_else(|| format!("element {place} is not a value of the datatype"))
    });
    elements.collect()
}

/// Each with its length in 32 bits before it.
fn texts(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let place = all.len();
        let (length, rest) =
            bytes.split_first_chunk().ok_or_else(|| format!("the length of element {place} is cut short"))?;
        let (text, rest) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or_else(|| format!("element {place} is cut short"))?;
        let text = std::str::from_utf8(text).map_err(|_| format!("element {place} is not UTF-8"))?;
        all.push(text.to_owned());
        bytes = rest;
    }
    Ok(all)
}
