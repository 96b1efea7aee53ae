/-!
Sums in another order: `gemm_combine` (`steelworks/kernels/metal/gemm/split.h`) and `gemv_dot`
(`gemm/vector.h`). Here a law of addition is needed, and it is a hypothesis of each theorem: floating-point addition
does not have it, whole numbers that stay below 2^24 do.
-/
namespace Steelworks.SplitK
noncomputable section

/-- Terms `first`, `first + 1`, ... (`count` of them) added to `acc` in order. -/
def sum (op : α → α → α) (term : Nat → α) (acc : α) (first : Nat) : Nat → α
  | 0 => acc
  | n + 1 => sum op term (op acc (term first)) (first + 1) n

/-- `gemm_split_begin` of `gemm/index.h`. -/
def splitBegin (split splitK : Nat) : Nat := split * splitK

/-- `gemm_split_end` of `gemm/index.h`. -/
def splitEnd (split splitK k : Nat) : Nat :=
  if k < splitBegin split splitK + splitK then k else splitBegin split splitK + splitK

/-- How many splits `_run` of `gemm.py` makes. -/
def splits (k splitK : Nat) : Nat := (k + splitK - 1) / splitK

/-- The partial sum of a split. -/
def partialSum (op : α → α → α) (zero : α) (term : Nat → α) (k splitK split : Nat) : α :=
  sum op term zero (splitBegin split splitK) (splitEnd split splitK k - splitBegin split splitK)

/-- `gemm_combine`: the partial sums of the first `count` splits, added in order. -/
def combine (op : α → α → α) (zero : α) (term : Nat → α) (k splitK : Nat) : Nat → α
  | 0 => zero
  | n + 1 => op (combine op zero term k splitK n) (partialSum op zero term k splitK n)

theorem sum_append (op : α → α → α) (term : Nat → α) (acc : α) (first m n : Nat) :
    sum op term acc first (m + n) = sum op term (sum op term acc first m) (first + m) n := by
  induction m generalizing acc first with
  | zero => simp [sum]
  | succ m ih =>
    rw [show m + 1 + n = (m + n) + 1 by omega, sum, sum, ih]
    congr 1
    omega

theorem sum_from (op : α → α → α) (zero : α) (assoc : ∀ a b c, op (op a b) c = op a (op b c))
    (left : ∀ a, op zero a = a) (right : ∀ a, op a zero = a) (term : Nat → α) (acc : α) (first n : Nat) :
    sum op term acc first n = op acc (sum op term zero first n) := by
  induction n generalizing acc first with
  | zero => simp [sum, right]
  | succ n ih => rw [sum, sum, ih, ih (op zero _), left, assoc]

/-- `gemm` with several splits (`_run` of `gemm.py`: `gemm_tiled` or `gemv_dot` for the partial sums, then
`gemm_combine` of `gemm/split.h`): the same as one sum, where addition is associative and zero is its unit. -/
theorem splitk_eq_naive (op : α → α → α) (zero : α) (assoc : ∀ a b c, op (op a b) c = op a (op b c))
    (left : ∀ a, op zero a = a) (right : ∀ a, op a zero = a) (term : Nat → α) (k splitK : Nat) (hs : 0 < splitK) :
    combine op zero term k splitK (splits k splitK) = sum op term zero 0 k := by
  have upTo : ∀ n, n ≤ splits k splitK →
      combine op zero term k splitK n = sum op term zero 0 (if n * splitK < k then n * splitK else k) := by
    intro n
    induction n with
    | zero => intro _; cases k <;> simp [combine, sum]
    | succ n ih =>
      intro hn
      have lt : n * splitK < k := by
        have : n < (k + splitK - 1) / splitK := by unfold splits at hn; omega
        have h := (Nat.le_div_iff_mul_le hs).1 this
        rw [Nat.succ_mul] at h
        omega
      rw [combine, ih (by omega), if_pos lt, partialSum,
        ← sum_from op zero assoc left right, splitEnd, splitBegin]
      have := sum_append op term zero 0 (n * splitK)
      rw [Nat.zero_add] at this
      rw [← this, Nat.succ_mul]
      congr 1
      by_cases h1 : n * splitK + splitK < k
      · rw [if_pos h1, if_neg (by omega)]; omega
      · rw [if_neg h1]
        split <;> omega
  rw [upTo _ (Nat.le_refl _)]
  congr 1
  have : k ≤ splits k splitK * splitK := by
    have h1 := Nat.div_add_mod (k + splitK - 1) splitK
    have h2 := Nat.mod_lt (k + splitK - 1) hs
    unfold splits
    rw [Nat.mul_comm] at h1
    omega
  split <;> omega

/-- The order of terms does not matter where addition is associative and commutative. -/
theorem foldl_perm (op : α → α → α) (assoc : ∀ a b c, op (op a b) c = op a (op b c)) (comm : ∀ a b, op a b = op b a)
    {l₁ l₂ : List α} (h : l₁.Perm l₂) (acc : α) : l₁.foldl op acc = l₂.foldl op acc := by
  induction h generalizing acc with
  | nil => rfl
  | cons x _ ih => simp [ih]
  | swap x y l => simp [assoc, comm x y]
  | trans _ _ ih₁ ih₂ => rw [ih₁, ih₂]

theorem foldl_unit (op : α → α → α) (zero : α) (assoc : ∀ a b c, op (op a b) c = op a (op b c))
    (left : ∀ a, op zero a = a) (right : ∀ a, op a zero = a) (l : List α) (acc : α) :
    l.foldl op acc = op acc (l.foldl op zero) := by
  induction l generalizing acc with
  | nil => simp [right]
  | cons x l ih => rw [List.foldl_cons, List.foldl_cons, ih, ih (op zero x), left, assoc]

theorem foldl_lanes (op : α → α → α) (zero : α) (assoc : ∀ a b c, op (op a b) c = op a (op b c))
    (left : ∀ a, op zero a = a) (right : ∀ a, op a zero = a) (lanes : List (List α)) :
    (lanes.map (fun lane => lane.foldl op zero)).foldl op zero = lanes.flatten.foldl op zero := by
  induction lanes with
  | nil => rfl
  | cons x rest ih =>
    rw [List.map_cons, List.foldl_cons, foldl_unit op zero assoc left right, ih, List.flatten_cons,
      List.foldl_append, left, ← foldl_unit op zero assoc left right]

/-- `gemv_dot` (`gemm/vector.h`): the lanes of a simdgroup each sum some of the terms, in any order, and their sums are
added (`simd_sum`): the same as one sum, where addition is associative and commutative and zero is its unit, as long as
the lanes together have each term once. -/
theorem lanes_eq_naive (op : α → α → α) (zero : α) (assoc : ∀ a b c, op (op a b) c = op a (op b c))
    (comm : ∀ a b, op a b = op b a) (left : ∀ a, op zero a = a) (term : Nat → α) (k : Nat)
    (lanes : List (List Nat)) (each : lanes.flatten.Perm (List.range k)) :
    ((lanes.map (List.map term)).map (fun lane => lane.foldl op zero)).foldl op zero
      = ((List.range k).map term).foldl op zero := by
  have right : ∀ a, op a zero = a := fun a => by rw [comm, left]
  rw [foldl_lanes op zero assoc left right, ← List.map_flatten]
  exact foldl_perm op assoc comm (each.map term) zero

end
end Steelworks.SplitK
