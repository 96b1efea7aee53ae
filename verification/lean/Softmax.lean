/-!
The online softmax: `softmax_row_looped`, `softmax_column` and `Finish` of
`steelworks/kernels/metal/softmax/softmax.h`, and the weights, sums and guard of
`steelworks/kernels/metal/attention/softmax.h`.

The core library has no real numbers. Scores and values are of any types; the laws of real arithmetic that a theorem
needs are the fields of `Laws`, and `powers` is an example that has them all. Floating point has them up to rounding.
A score of `none` stands for -inf: excluded.
-/
namespace Steelworks.Softmax
noncomputable section

/-- What is computed with; `exp a b` is exp(a - b). -/
structure Arithmetic (S V : Type) where
  zero : V
  one : V
  add : V → V → V
  mul : V → V → V
  div : V → V → V
  le : V → V → Prop
  positive : V → Prop
  exp : S → S → V
  highest : S → S → S
  lowest : S

/-- The laws of real arithmetic, exponentials and maxima that are used. `lowest` needs none: it is where the maximum
starts, and is finite (`kLowest`, `SOFTMAX_LOWEST`), so that no difference is inf - inf. -/
structure Laws (A : Arithmetic S V) : Prop where
  add_assoc : ∀ a b c, A.add (A.add a b) c = A.add a (A.add b c)
  add_comm : ∀ a b, A.add a b = A.add b a
  add_zero : ∀ a, A.add a A.zero = a
  mul_assoc : ∀ a b c, A.mul (A.mul a b) c = A.mul a (A.mul b c)
  mul_comm : ∀ a b, A.mul a b = A.mul b a
  add_mul : ∀ a b c, A.mul (A.add a b) c = A.add (A.mul a c) (A.mul b c)
  zero_mul : ∀ a, A.mul A.zero a = A.zero
  mul_div : ∀ a b c, A.mul a (A.div b c) = A.div (A.mul a b) c
  exp_chain : ∀ a b c, A.mul (A.exp a b) (A.exp b c) = A.exp a c
  exp_le_one : ∀ a b, A.highest a b = b → A.le (A.exp a b) A.one
  exp_positive : ∀ a b, A.positive (A.exp a b)
  add_positive : ∀ a b, A.positive a → A.positive b → A.positive (A.add a b)
  zero_not_positive : ¬ A.positive A.zero
  highest_assoc : ∀ a b c, A.highest (A.highest a b) c = A.highest a (A.highest b c)
  highest_comm : ∀ a b, A.highest a b = A.highest b a
  highest_self : ∀ a, A.highest a a = a

variable {S V : Type} (A : Arithmetic S V)

/-- A key: its score, and what is summed with its weight (1 for a softmax, an element of `v` for attention). -/
abbrev Key (S V : Type) := Option S × V

/-- `highest` of the kernels: a score of -inf never wins. -/
def higher (m : S) : Option S → S
  | none => m
  | some x => A.highest m x

/-- exp(score - maximum), and 0 for -inf. -/
def weight (m : S) : Option S → V
  | none => A.zero
  | some x => A.exp x m

/-- The maximum of a row; `lowest` if all is excluded. -/
def top (m : S) : List (Key S V) → S
  | [] => m
  | x :: rest => top (higher A m x.1) rest

/-- The sum of weight times value, from `acc` on, with the weights taken at maximum `m`. -/
def weighted (m : S) (acc : V) : List (Key S V) → V
  | [] => acc
  | x :: rest => weighted m (A.add acc (A.mul (weight A m x.1) x.2)) rest

/-- Two passes: the maximum, then the sum. -/
def twoPass (row : List (Key S V)) : S × V :=
  let m := top A A.lowest row
  (m, weighted A m A.zero row)

/-- One step of the online form, over the elements that a thread reads at once: what was summed is scaled to the new
maximum (`seen.y * row_exp(seen.x - higher)`), and the elements are added with weights at that maximum. -/
def onlineStep (seen : S × V) (chunk : List (Key S V)) : S × V :=
  let m := top A seen.1 chunk
  (m, weighted A m (A.mul seen.2 (A.exp seen.1 m)) chunk)

/-- One pass over a row in chunks of any sizes. -/
def online (seen : S × V) : List (List (Key S V)) → S × V
  | [] => seen
  | chunk :: rest => online (onlineStep A seen chunk) rest

/-- `nothing_seen`. -/
def nothing : S × V := (A.lowest, A.zero)

/-- The chunks one behind the other. -/
def row : List (List (Key S V)) → List (Key S V)
  | [] => []
  | chunk :: rest => chunk ++ row rest

variable {A}

theorem top_append (m : S) (a b : List (Key S V)) : top A m (a ++ b) = top A (top A m a) b := by
  induction a generalizing m with
  | nil => rfl
  | cons x a ih => exact ih _

theorem weighted_append (m : S) (acc : V) (a b : List (Key S V)) :
    weighted A m acc (a ++ b) = weighted A m (weighted A m acc a) b := by
  induction a generalizing acc with
  | nil => rfl
  | cons x a ih => exact ih _

theorem weight_scaled (L : Laws A) (m m' : S) (x : Option S) :
    A.mul (weight A m x) (A.exp m m') = weight A m' x := by
  cases x with
  | none => exact L.zero_mul _
  | some x => exact L.exp_chain x m m'

theorem weighted_scaled (L : Laws A) (m m' : S) (acc : V) (keys : List (Key S V)) :
    A.mul (weighted A m acc keys) (A.exp m m') = weighted A m' (A.mul acc (A.exp m m')) keys := by
  induction keys generalizing acc with
  | nil => rfl
  | cons x keys ih =>
    rw [weighted, ih, weighted, L.add_mul, L.mul_assoc, L.mul_comm x.2, ← L.mul_assoc, weight_scaled L]

theorem online_eq (L : Laws A) (seen : S × V) (chunks : List (List (Key S V))) :
    online A seen chunks = (top A seen.1 (row chunks),
      weighted A (top A seen.1 (row chunks)) (A.mul seen.2 (A.exp seen.1 (top A seen.1 (row chunks)))) (row chunks))
    ∨ chunks = [] := by
  induction chunks generalizing seen with
  | nil => exact Or.inr rfl
  | cons chunk rest ih =>
    left
    rw [online, row, top_append, weighted_append]
    rcases ih (onlineStep A seen chunk) with h | h
    · rw [h]
      simp only [onlineStep]
      rw [weighted_scaled L, L.mul_assoc, L.exp_chain]
    · subst h
      simp [online, onlineStep, row, top, weighted]

/-- `softmax_row_looped` (any number of elements a step) and the loop of `softmax_column` (one) in
`softmax/softmax.h`, and the loop of `attention/attention.h`: one pass, in chunks of any sizes, ends with the maximum and
the sum that two passes give. Excluded scores and rows with nothing else included. -/
theorem online_eq_two_pass (L : Laws A) (chunks : List (List (Key S V))) :
    online A (nothing A) chunks = twoPass A (row chunks) := by
  rcases online_eq L (nothing A) chunks with h | h
  · rw [h]
    simp only [nothing, twoPass, L.zero_mul]
  · subst h
    rfl

/-! ## Several threads on one row -/

/-- The maximum of what several threads have seen. -/
def topOf (m : S) : List (S × V) → S
  | [] => m
  | p :: rest => topOf (A.highest m p.1) rest

/-- Their sums, each scaled to maximum `m`, added. -/
def scaledSum (m : S) (acc : V) : List (S × V) → V
  | [] => acc
  | p :: rest => scaledSum m (A.add acc (A.mul p.2 (A.exp p.1 m))) rest

/-- `seen_by_lanes` and `group_gather` of `softmax/softmax.h`. -/
def gather (A : Arithmetic S V) (seen : List (S × V)) : S × V :=
  let m := topOf (A := A) A.lowest seen
  (m, scaledSum (A := A) m A.zero seen)

theorem top_highest (L : Laws A) (a m : S) (keys : List (Key S V)) :
    top A (A.highest a m) keys = A.highest a (top A m keys) := by
  induction keys generalizing m with
  | nil => rfl
  | cons x keys ih =>
    rw [top, top, ← ih]
    cases hx : x.1 with
    | none => rfl
    | some y => simp only [higher, L.highest_assoc]

theorem weighted_from (L : Laws A) (m : S) (acc : V) (keys : List (Key S V)) :
    weighted A m acc keys = A.add acc (weighted A m A.zero keys) := by
  induction keys generalizing acc with
  | nil => exact (L.add_zero acc).symm
  | cons x keys ih =>
    rw [weighted, weighted, ih, ih (A.add A.zero _), L.add_comm A.zero, L.add_zero, L.add_assoc]

theorem topOf_eq (L : Laws A) (m : S) (lanes : List (List (Key S V))) :
    topOf (A := A) (A.highest m A.lowest) (lanes.map (twoPass A)) = top A (A.highest m A.lowest) (row lanes) := by
  induction lanes generalizing m with
  | nil => rfl
  | cons lane rest ih =>
    rw [List.map_cons, topOf, row, top_append, top_highest L]
    have e : A.highest (A.highest m A.lowest) (twoPass A lane).1
        = A.highest (A.highest m (top A A.lowest lane)) A.lowest := by
      have h : top A A.lowest lane = A.highest A.lowest (top A A.lowest lane) := by
        rw [← top_highest L, L.highest_self]
      simp only [twoPass]
      rw [L.highest_assoc, ← h, L.highest_assoc, L.highest_comm _ A.lowest, ← h]
    have e' : A.highest m (top A A.lowest lane) = A.highest (A.highest m (top A A.lowest lane)) A.lowest := by
      have h : top A A.lowest lane = A.highest A.lowest (top A A.lowest lane) := by
        rw [← top_highest L, L.highest_self]
      rw [L.highest_assoc, L.highest_comm _ A.lowest, ← h]
    rw [e, ih, ← e']

theorem scaledSum_eq (L : Laws A) (m : S) (acc : V) (lanes : List (List (Key S V))) :
    scaledSum (A := A) m acc (lanes.map (twoPass A)) = weighted A m acc (row lanes) := by
  induction lanes generalizing acc with
  | nil => rfl
  | cons lane rest ih =>
    rw [List.map_cons, scaledSum, row, weighted_append, ih]
    simp only [twoPass]
    rw [weighted_scaled L, L.zero_mul, ← weighted_from L]

theorem top_perm (L : Laws A) {a b : List (Key S V)} (h : a.Perm b) (m : S) : top A m a = top A m b := by
  induction h generalizing m with
  | nil => rfl
  | cons x _ ih => exact ih _
  | swap x y l =>
    rw [top, top, top, top]
    congr 1
    cases x.1 <;> cases y.1 <;> simp only [higher]
    rename_i p q
    rw [L.highest_assoc, L.highest_assoc, L.highest_comm q p]
  | trans _ _ ih₁ ih₂ => rw [ih₁, ih₂]

theorem weighted_perm (L : Laws A) {a b : List (Key S V)} (h : a.Perm b) (m : S) (acc : V) :
    weighted A m acc a = weighted A m acc b := by
  induction h generalizing acc with
  | nil => rfl
  | cons x _ ih => exact ih _
  | swap x y l =>
    rw [weighted, weighted, weighted, weighted]
    congr 1
    rw [L.add_assoc, L.add_comm (A.mul (weight A m y.1) y.2), ← L.add_assoc]
  | trans _ _ ih₁ ih₂ => rw [ih₁, ih₂]

/-- `softmax_row`, `softmax_row_looped` and `softmax_column` of `softmax/softmax.h`: lanes and simdgroups see any parts
of a row, which together are the row, and their pairs are gathered: the same maximum and sum as in two passes. -/
theorem lanes_eq_two_pass (L : Laws A) (lanes : List (List (Key S V))) (keys : List (Key S V))
    (each : (row lanes).Perm keys) :
    gather A (lanes.map (twoPass A)) = twoPass A keys := by
  have ht := topOf_eq L A.lowest lanes
  rw [L.highest_self] at ht
  simp only [gather, ht, scaledSum_eq L, twoPass]
  rw [top_perm L each, weighted_perm L each]

/-! ## The last step -/

/-- `Finish` of `softmax/softmax.h`: an element's weight was kept at its thread's own maximum, and is scaled once. -/
theorem finish_eq (L : Laws A) (x local_ m : S) (total : V) :
    A.mul (weight A local_ (some x)) (A.div (A.exp local_ m) total) = A.div (weight A m (some x)) total := by
  rw [L.mul_div, weight_scaled L]

/-- `softmax_quotient` of `attention/softmax.h`: 0 for a row that saw no key. -/
def quotient [DecidableEq V] (A : Arithmetic S V) (sum total : V) : V :=
  if total = A.zero then A.zero else A.div sum total

/-- The keys of a row with 1 in place of each value: what the total is summed of. -/
def ones (A : Arithmetic S V) : List (Key S V) → List (Key S V)
  | [] => []
  | x :: rest => (x.1, A.one) :: ones A rest

/-- A row of attention, in two passes, with the guard. -/
def attention [DecidableEq V] (A : Arithmetic S V) (keys : List (Key S V)) : V :=
  quotient A (twoPass A keys).2 (twoPass A (ones A keys)).2

/-- The same, online. -/
def attentionOnline [DecidableEq V] (A : Arithmetic S V) (chunks : List (List (Key S V))) : V :=
  quotient A (online A (nothing A) chunks).2 (online A (nothing A) (chunks.map (ones A))).2

theorem row_ones (chunks : List (List (Key S V))) : row (chunks.map (ones A)) = ones A (row chunks) := by
  induction chunks with
  | nil => rfl
  | cons chunk rest ih =>
    rw [List.map_cons, row, row, ih]
    induction chunk with
    | nil => rfl
    | cons x chunk ih' => simp [ones, ih']

/-- `attention` (`attention/attention.h`, `attention/vector.h`): the online form with its guard is the two-pass form. -/
theorem attention_online [DecidableEq V] (L : Laws A) (chunks : List (List (Key S V))) :
    attentionOnline A chunks = attention A (row chunks) := by
  simp only [attentionOnline, attention, online_eq_two_pass L, row_ones]

theorem weighted_masked (L : Laws A) (m : S) (keys : List (Key S V)) (masked : ∀ x ∈ keys, x.1 = none) :
    weighted A m A.zero keys = A.zero := by
  induction keys with
  | nil => rfl
  | cons x keys ih =>
    have hx : x.1 = none := masked x List.mem_cons_self
    rw [weighted, hx, weight, L.zero_mul, L.add_zero]
    exact ih fun y hy => masked y (List.mem_cons_of_mem _ hy)

theorem ones_masked (keys : List (Key S V)) (masked : ∀ x ∈ keys, x.1 = none) :
    ∀ x ∈ ones A keys, x.1 = none := by
  induction keys with
  | nil => simp [ones]
  | cons y keys ih =>
    intro x hx
    simp only [ones, List.mem_cons] at hx
    rcases hx with h | h
    · subst h; exact masked y List.mem_cons_self
    · exact ih (fun z hz => masked z (List.mem_cons_of_mem _ hz)) x h

/-- `softmax_quotient` (`attention/softmax.h`): a row whose keys are all excluded has the result 0; nothing is divided
by 0. -/
theorem masked_row [DecidableEq V] (L : Laws A) (chunks : List (List (Key S V)))
    (masked : ∀ x ∈ row chunks, x.1 = none) : attentionOnline A chunks = A.zero := by
  rw [attention_online L, attention, quotient, if_pos]
  exact weighted_masked L _ _ (ones_masked _ masked)

theorem weighted_ones_positive (L : Laws A) (one_mul : ∀ a, A.mul a A.one = a) (m : S) (acc : V)
    (keys : List (Key S V)) (h : A.positive acc ∨ (acc = A.zero ∧ ∃ x ∈ keys, x.1 ≠ none)) :
    A.positive (weighted A m acc (ones A keys)) := by
  induction keys generalizing acc with
  | nil =>
    rcases h with h | ⟨_, x, hx, _⟩
    · exact h
    · simp at hx
  | cons x keys ih =>
    rw [ones, weighted, one_mul]
    apply ih
    cases hx : x.1 with
    | none =>
      rw [weight, L.add_zero]
      rcases h with h | ⟨h, y, hy, hn⟩
      · exact Or.inl h
      · refine Or.inr ⟨h, y, ?_, hn⟩
        rcases List.mem_cons.1 hy with e | e
        · subst e; exact absurd hx hn
        · exact e
    | some s =>
      left
      rw [weight]
      rcases h with h | ⟨h, _⟩
      · exact L.add_positive _ _ h (L.exp_positive _ _)
      · rw [h, L.add_comm, L.add_zero]
        exact L.exp_positive _ _

/-- `softmax_quotient` (`attention/softmax.h`): the guard is taken for no other row; with one key that is not excluded the total is not 0. -/
theorem guard_only_masked [DecidableEq V] (L : Laws A) (one_mul : ∀ a, A.mul a A.one = a) (keys : List (Key S V))
    (seen : ∃ x ∈ keys, x.1 ≠ none) : (twoPass A (ones A keys)).2 ≠ A.zero := by
  intro e
  have := weighted_ones_positive L one_mul (top A A.lowest (ones A keys)) A.zero keys (Or.inr ⟨rfl, seen⟩)
  simp only [twoPass] at e
  rw [e] at this
  exact L.zero_not_positive this

theorem highest_top (L : Laws A) (m : S) (keys : List (Key S V)) : A.highest m (top A m keys) = top A m keys := by
  rw [← top_highest L, L.highest_self]

theorem mem_top (L : Laws A) (m x : S) (v : V) (keys : List (Key S V)) (h : (some x, v) ∈ keys) :
    A.highest x (top A m keys) = top A m keys := by
  induction keys generalizing m with
  | nil => simp at h
  | cons y keys ih =>
    rcases List.mem_cons.1 h with e | e
    · rw [← e, top]
      simp only [higher]
      rw [L.highest_comm m x, top_highest L, ← L.highest_assoc, L.highest_self]
    · exact ih _ e

/-- `row_exp` (`softmax/softmax.h`), `softmax_weight` (`attention/softmax.h`): no weight exceeds 1, so no exponential
overflows. -/
theorem weight_le_one (L : Laws A) (keys : List (Key S V)) (x : S) (v : V) (h : (some x, v) ∈ keys) :
    A.le (weight A (twoPass A keys).1 (some x)) A.one :=
  L.exp_le_one _ _ (mem_top L _ _ _ _ h)


/-- `attention` with a padding mask (`MASK_BOOL` of `attention/softmax.h`): excluded keys, wherever they stand in the
chunks, change nothing. With `Batch.alone_eq_batched` this is why padding a sequence does not change its answer. -/
theorem excluded_change_nothing (L : Laws A) (m : S) (acc : V) (keys : List (Key S V)) :
    top A m (keys.filter (fun x => x.1.isSome)) = top A m keys
      ∧ weighted A m acc (keys.filter (fun x => x.1.isSome)) = weighted A m acc keys := by
  induction keys generalizing m acc with
  | nil => exact ⟨rfl, rfl⟩
  | cons x keys ih =>
    have top_any := fun m' => (ih m' acc).1
    have sum_any : ∀ acc', weighted A m acc' (keys.filter (fun x => x.1.isSome)) = weighted A m acc' keys :=
      fun acc' => (ih m acc').2
    cases hx : x.1 with
    | none =>
      rw [List.filter_cons_of_neg (by simp [hx])]
      rw [top, weighted, hx, weight, L.zero_mul, L.add_zero]
      exact ih m acc
    | some s =>
      rw [List.filter_cons_of_pos (by simp [hx])]
      rw [top, top, weighted, weighted]
      exact ⟨top_any _, sum_any _⟩

/-! ## The laws contradict nothing -/

/-- Whole scores, rational values, and powers of two for exponentials. -/
def powers : Arithmetic Int Rat where
  zero := 0
  one := 1
  add := (· + ·)
  mul := (· * ·)
  div := (· / ·)
  le := (· ≤ ·)
  positive a := 0 < a
  exp a b := (2 : Rat) ^ (a - b)
  highest a b := if a < b then b else a
  lowest := -1000000

theorem power_le_one (k : Nat) : (2 : Rat) ^ (-(k : Int)) ≤ 1 := by
  induction k with
  | zero => decide
  | succ k ih =>
    have positive : 0 < (2 : Rat) ^ (-((k + 1 : Nat) : Int)) := Rat.zpow_pos (by decide)
    have next := Rat.zpow_add (q := 2) (by decide) (-((k + 1 : Nat) : Int)) 1
    rw [show -((k + 1 : Nat) : Int) + 1 = -(k : Int) by omega] at next
    have one : (2 : Rat) ^ (1 : Int) = 2 := by decide
    rw [one] at next
    grind

/-- There is an arithmetic with all the laws: they contradict nothing. -/
theorem powers_laws : Laws powers where
  add_assoc := Rat.add_assoc
  add_comm := Rat.add_comm
  add_zero := Rat.add_zero
  mul_assoc := Rat.mul_assoc
  mul_comm := Rat.mul_comm
  add_mul := Rat.add_mul
  zero_mul := Rat.zero_mul
  mul_div a b c := by simp only [powers, Rat.div_def, Rat.mul_assoc]
  exp_chain a b c := by
    simp only [powers]
    rw [← Rat.zpow_add (by decide)]
    congr 1
    omega
  exp_le_one a b h := by
    simp only [powers] at h ⊢
    have ordered : a ≤ b := by split at h <;> omega
    obtain ⟨k, hk⟩ := Int.eq_ofNat_of_zero_le (show 0 ≤ b - a by omega)
    rw [show a - b = -(k : Int) by omega]
    exact power_le_one k
  exp_positive a b := Rat.zpow_pos (by decide)
  add_positive a b ha hb := by simp only [powers] at ha hb ⊢; grind
  zero_not_positive := Rat.lt_irrefl
  highest_assoc a b c := by simp only [powers]; repeat' split <;> omega
  highest_comm a b := by simp only [powers]; repeat' split <;> omega
  highest_self a := by simp only [powers]; split <;> rfl

end
end Steelworks.Softmax
