//! Ensembles of trees: TreeEnsembleClassifier and TreeEnsembleRegressor of `ai.onnx.ml`, versions 1 to 3.
//!
//! Sums are single precision, in the order of the trees, as ONNX Runtime's are: labels decided by a tie come out alike. Where
//! the specification leaves open what two classes with one score mean, the answer is ONNX Runtime's too.

use std::collections::HashMap;

use crate::Tensor;
use crate::evaluator::{Attributes, Labels, Prepared, Refusal};
use crate::linear::{PostTransform, float_tensor, largest, one};
use crate::proto::NodeProto;

pub(crate) fn prepare(node: &NodeProto) -> Result<Prepared, Refusal> {
    let attributes = Attributes::of(node);
    for name in [
        "nodes_values_as_tensor",
        "base_values_as_tensor",
        "class_weights_as_tensor",
        "target_weights_as_tensor",
    ] {
        if attributes.has(name) {
            return Err(Refusal::Unsupported("double precision is not supported".into()));
        }
    }
    match &*node.op_type {
        "TreeEnsembleClassifier" => classifier(&attributes),
        _ => regressor(&attributes),
    }
}

/// How a node compares the feature with its value.
#[derive(Clone, Copy)]
enum Mode {
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
}

/// A node that is no leaf has children; a leaf adds its weights.
enum Node {
    Branch {
        feature: usize,
        value: f32,
        mode: Mode,
        missing_is_true: bool,
        when_true: usize,
        when_false: usize,
    },
    Leaf {
        from: usize,
        to: usize,
    },
}

struct Ensemble {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    /// Of the leaves: target and what is added to it.
    weights: Vec<(usize, f32)>,
    base: Vec<f32>,
    /// Columns that a row must have.
    features: usize,
    targets: usize,
}

impl Ensemble {
    /// `kind` is "class" or "target", by which the attributes of leaves are called.
    fn of(attributes: &Attributes<'_>, kind: &str, targets: usize) -> Result<Self, Refusal> {
        let trees = attributes.ints("nodes_treeids");
        let count = trees.len();
        let same = |name: &str, length: usize| match length == count {
            true => Ok(()),
            false => Err(format!("{name} has {length} values for {count} nodes")),
        };
        let column = |name: &str| same(name, attributes.ints(name).len()).map(|()| attributes.ints(name));
        let (ids, features) = (column("nodes_nodeids")?, column("nodes_featureids")?);
        let (when_true, when_false) = (column("nodes_truenodeids")?, column("nodes_falsenodeids")?);
        let (values, modes) = (attributes.floats("nodes_values"), attributes.strings("nodes_modes"));
        same("nodes_values", values.len())?;
        same("nodes_modes", modes.len())?;
        let missing = attributes.ints("nodes_missing_value_tracks_true");
        if !missing.is_empty() {
            same("nodes_missing_value_tracks_true", missing.len())?;
        }
        let mut places = HashMap::with_capacity(count);
        for (place, key) in trees.iter().copied().zip(ids.iter().copied()).enumerate() {
            if places.insert(key, place).is_some() {
                return Err(format!("tree {} has node {} twice", key.0, key.1).into());
            }
        }

        let mut of_leaf: HashMap<usize, Vec<(usize, f32)>> = HashMap::new();
        let leaf_trees = attributes.ints(&format!("{kind}_treeids"));
        let leaf_ids = attributes.ints(&format!("{kind}_nodeids"));
        let leaf_targets = attributes.ints(&format!("{kind}_ids"));
        let leaf_weights = attributes.floats(&format!("{kind}_weights"));
        let lengths = [leaf_ids.len(), leaf_targets.len(), leaf_weights.len()];
        if lengths.iter().any(|l| *l != leaf_trees.len()) {
            return Err(format!("the attributes {kind}_* have different lengths").into());
        }
        for (i, key) in leaf_trees.iter().copied().zip(leaf_ids.iter().copied()).enumerate() {
            let place = places.get(&key).ok_or_else(|| format!("tree {} has no node {}", key.0, key.1))?;
            let target = usize::try_from(leaf_targets[i]).ok().filter(|t| *t < targets);
            let target = target.ok_or_else(|| format!("{kind}_ids has {}, of {targets}", leaf_targets[i]))?;
            of_leaf.entry(*place).or_default().push((target, leaf_weights[i]));
        }

        let (mut nodes, mut weights) = (Vec::with_capacity(count), Vec::with_capacity(leaf_weights.len()));
        let mut parents = vec![0_u32; count];
        let mut columns = 0;
        for place in 0..count {
            let mode = match &*modes[place] {
                b"LEAF" => {
                    let from = weights.len();
                    weights.extend(of_leaf.remove(&place).unwrap_or_default());
                    nodes.push(Node::Leaf { from, to: weights.len() });
                    continue;
                }
                b"BRANCH_LEQ" => Mode::LessOrEqual,
                b"BRANCH_LT" => Mode::Less,
                b"BRANCH_GTE" => Mode::GreaterOrEqual,
                b"BRANCH_GT" => Mode::Greater,
                b"BRANCH_EQ" => Mode::Equal,
                b"BRANCH_NEQ" => Mode::NotEqual,
                other => {
                    return Err(format!("a node has the mode {:?}", String::from_utf8_lossy(other)).into());
                }
            };
            let mut child = |id: i64| {
                let found = places.get(&(trees[place], id)).copied();
                let found = found.ok_or_else(|| format!("tree {} has no node {id}", trees[place]))?;
                parents[found] += 1;
                Ok::<_, String>(found)
            };
            let (when_true, when_false) = (child(when_true[place])?, child(when_false[place])?);
            let feature = usize::try_from(features[place]).map_err(|_| "a feature is negative".to_owned())?;
            columns = columns.max(feature.saturating_add(1));
            let missing_is_true = missing.get(place).is_some_and(|m| *m != 0);
            let value = values[place];
            nodes.push(Node::Branch { feature, value, mode, missing_is_true, when_true, when_false });
        }
        // One parent at most, and all reached from a node without: then there are only trees, and walks end.
        if let Some(place) = parents.iter().position(|p| *p > 1) {
            return Err(format!("tree {} reaches node {} by two ways", trees[place], ids[place]).into());
        }
        let roots: Vec<usize> = (0..count).filter(|place| parents[*place] == 0).collect();
        let reached = reached(&nodes, &roots);
        if let Some(place) = reached.iter().position(|is| !is) {
            return Err(format!("tree {}: node {} is never reached", trees[place], ids[place]).into());
        }
        if roots.is_empty() {
            return Err("it has no tree".to_owned().into());
        }
        let base = attributes.floats("base_values").to_vec();
        Ok(Self { nodes, roots, weights, base, features: columns, targets })
    }

    /// Adds each tree's answer for a row, and says which targets got any.
    fn walk(&self, row: &[f32], mut add: impl FnMut(usize, f32)) {
        for root in &self.roots {
            let mut place = *root;
            loop {
                match self.nodes[place] {
                    Node::Leaf { from, to } => {
                        self.weights[from..to].iter().for_each(|(target, weight)| add(*target, *weight));
                        break;
                    }
                    Node::Branch { feature, value, mode, missing_is_true, when_true, when_false } => {
                        let x = row[feature];
                        let holds = match mode {
                            Mode::LessOrEqual => x <= value,
                            Mode::Less => x < value,
                            Mode::GreaterOrEqual => x >= value,
                            Mode::Greater => x > value,
                            Mode::Equal => x == value,
                            Mode::NotEqual => x != value,
                        };
                        let holds = holds || (missing_is_true && x.is_nan());
                        place = if holds { when_true } else { when_false };
                    }
                }
            }
        }
    }

    fn rows<'a>(
        &self,
        input: &'a Tensor,
    ) -> Result<(usize, impl Iterator<Item = &'a [f32]> + use<'a>), String> {
        let (rows, columns) = input.matrix()?;
        if columns < self.features {
            return Err(format!("its input has {columns} columns; it takes {}", self.features));
        }
        let floats = input.floats()?;
        Ok((rows, (0..rows).map(move |row| &floats[row * columns..(row + 1) * columns])))
    }
}

/// By place: is the node below one of the roots? No node has two parents.
fn reached(nodes: &[Node], roots: &[usize]) -> Vec<bool> {
    let (mut reached, mut open) = (vec![false; nodes.len()], roots.to_vec());
    while let Some(place) = open.pop() {
        reached[place] = true;
        if let Node::Branch { when_true, when_false, .. } = nodes[place] {
            open.extend([when_true, when_false]);
        }
    }
    reached
}

fn regressor(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let average = match attributes.text("aggregate_function", "SUM") {
        "SUM" => false,
        "AVERAGE" => true,
        other => return Err(Refusal::Unsupported(format!("aggregate_function {other} is not supported"))),
    };
    let transform = PostTransform::of(attributes)?;
    let targets = usize::try_from(attributes.int("n_targets", 1)).unwrap_or(0);
    let ensemble = Ensemble::of(attributes, "target", targets)?;
    if targets == 0 || ![0, targets].contains(&ensemble.base.len()) {
        return Err(format!("{} base_values for {targets} targets", ensemble.base.len()).into());
    }
    Ok(Box::new(move |inputs| {
        let (rows, all) = ensemble.rows(one(inputs)?)?;
        let mut out = Vec::with_capacity(rows.saturating_mul(targets));
        for row in all {
            let mut scores = vec![0.0; targets];
            ensemble.walk(row, |target, weight| scores[target] += weight);
            for (target, score) in scores.iter_mut().enumerate() {
                if average {
                    *score /= ensemble.roots.len() as f32;
                }
                *score += ensemble.base.get(target).copied().unwrap_or_default();
            }
            transform.apply(&mut scores);
            out.extend(scores);
        }
        Ok(vec![float_tensor(vec![rows, targets], out)?])
    }))
}

fn classifier(attributes: &Attributes<'_>) -> Result<Prepared, Refusal> {
    let labels: Labels = attributes.labels("classlabels_int64s", "classlabels_strings")?;
    let transform = PostTransform::of(attributes)?;
    let classes = labels.len();
    let ensemble = Ensemble::of(attributes, "class", classes)?;
    if classes < 2 {
        return Err(Refusal::Unsupported("one class is not supported".into()));
    }
    let bases = ensemble.base.len();
    let one_score = classes == 2 && ensemble.weights.windows(2).all(|w| w[0].0 == w[1].0);
    let expected: &[usize] = if one_score { &[0, 1] } else { &[0, classes] };
    if !expected.contains(&bases) {
        return Err(Refusal::Unsupported(format!(
            "{bases} base_values for {classes} classes are not supported"
        )));
    }
    let of_two = one_score.then(|| OneScore {
        are_probabilities: ensemble.weights.iter().all(|(_, weight)| *weight >= 0.0),
        base: ensemble.base.first().copied().unwrap_or_default(),
    });
    Ok(Box::new(move |inputs| {
        let (rows, all) = ensemble.rows(one(inputs)?)?;
        let (mut picked, mut out) =
            (Vec::with_capacity(rows), Vec::with_capacity(rows.saturating_mul(classes)));
        for row in all {
            if let Some(of_two) = &of_two {
                let mut score = 0.0;
                ensemble.walk(row, |_, weight| score += weight);
                let (class, scores) = of_two.decide(score, transform);
                picked.push(class);
                out.extend(scores);
                continue;
            }
            let mut scores = vec![0.0; ensemble.targets];
            ensemble.walk(row, |class, weight| scores[class] += weight);
            scores.iter_mut().zip(&ensemble.base).for_each(|(score, base)| *score += base);
            // With two classes of two scores, ONNX Runtime asks for the sign of the second.
            picked.push(if classes == 2 { usize::from(scores[1] > 0.0) } else { largest(&scores) });
            transform.apply(&mut scores);
            out.extend(scores);
        }
        Ok(vec![labels.pick(&picked)?, float_tensor(vec![rows, classes], out)?])
    }))
}

/// Two classes of which the leaves know one score: that of the second.
struct OneScore {
    /// It is the second's probability, and the first's is what is left; otherwise its sign decides.
    are_probabilities: bool,
    base: f32,
}

impl OneScore {
    fn decide(&self, score: f32, transform: PostTransform) -> (usize, [f32; 2]) {
        let score = score + self.base;
        let mut scores = if self.are_probabilities { [1.0 - score, score] } else { [-score, score] };
        if !self.are_probabilities && matches!(transform, PostTransform::Logistic) {
            transform.apply(&mut scores);
        }
        (usize::from(score > if self.are_probabilities { 0.5 } else { 0.0 }), scores)
    }
}
