/-!
Which batches to run: `BucketTable` of `steelworks/plans/cost.py`, `GraphPlan._bucket` of `steelworks/plans/graph.py`,
`InputReader._bucket_of` of `steelworks/plans/inputs.py` and `_deterministic_bucket` of `steelworks/plans/eager.py`.

Times are natural numbers here; the code has floats, which add exactly as long as they are whole numbers below 2^53.
-/
namespace Steelworks.Chooser
noncomputable section

/-- `Choice` of `plans/cost.py`. -/
structure Choice where
  runs : List Nat
  seconds : Nat

instance : Inhabited Choice := ⟨⟨[], 0⟩⟩

/-- A bucket: how many rows it serves and what it takes. -/
abbrev Bucket := Nat × Nat

def insertDown (x : Nat) : List Nat → List Nat
  | [] => [x]
  | y :: rest => if y ≤ x then x :: y :: rest else y :: insertDown x rest

/-- `sorted(..., reverse=True)`. -/
def sortDown : List Nat → List Nat
  | [] => []
  | x :: rest => insertDown x (sortDown rest)

/-- `_best[rows]` of a table whose newest entry comes first. -/
def nth : List Choice → Nat → Choice
  | [], _ => default
  | c :: _, 0 => c
  | _ :: rest, n + 1 => nth rest n

/-- An option of `_extend`: a bucket and the best choice for the rows that it leaves. -/
structure Candidate where
  bucket : Bucket
  rest : Choice

def Candidate.total (c : Candidate) : Nat := c.bucket.2 + c.rest.seconds

/-- The order of `_extend`'s keys `(total, number of further runs, -size)`. -/
def before (a b : Candidate) : Bool :=
  decide (a.total < b.total) ||
    (decide (a.total = b.total) &&
      (decide (a.rest.runs.length < b.rest.runs.length) ||
        (decide (a.rest.runs.length = b.rest.runs.length) && decide (b.bucket.1 < a.bucket.1))))

/-- `min(options, key=...)`: the first of the least. -/
def least (candidate : Bucket → Candidate) (found : Candidate) : List Bucket → Candidate
  | [] => found
  | b :: rest => least candidate (if before (candidate b) found then candidate b else found) rest

/-- `BucketTable._extend` for one row more than the table (newest entry first) serves. -/
def extend (buckets : List Bucket) (table : List Choice) : Choice :=
  match buckets with
  | [] => default
  | b :: others =>
    let candidate := fun b : Bucket => (⟨b, nth table (b.1 - 1)⟩ : Candidate)
    let best := least candidate (candidate b) others
    ⟨sortDown (best.bucket.1 :: best.rest.runs), best.total⟩

/-- The table up to `rows`: `BucketTable._best`, newest entry first. Where a bucket serves all rows and more, the entry
for 0 rows is the last: `nth` has to stop there, so the table ends in enough of them. -/
def table (buckets : List Bucket) (most : Nat) : Nat → List Choice
  | 0 => List.replicate (most + 1) default
  | n + 1 => extend buckets (table buckets most n) :: table buckets most n

/-- The size of the largest bucket. -/
def largest : List Bucket → Nat
  | [] => 0
  | b :: rest => if largest rest < b.1 then b.1 else largest rest

/-- `BucketTable.best(rows)`. -/
def best (buckets : List Bucket) (rows : Nat) : Choice := nth (table buckets (largest buckets) rows) 0

/-- A table is made of at least one bucket, each of one row or more (`BucketTable.__init__` refuses others). -/
structure Ok (buckets : List Bucket) : Prop where
  some : buckets ≠ []
  sizes : ∀ b ∈ buckets, 1 ≤ b.1

theorem le_largest {buckets : List Bucket} {b : Bucket} (h : b ∈ buckets) : b.1 ≤ largest buckets := by
  induction buckets with
  | nil => simp at h
  | cons c rest ih =>
    rw [largest]
    rcases List.mem_cons.1 h with e | e
    · subst e; split <;> omega
    · have := ih e
      split <;> omega

theorem nth_replicate (n i : Nat) : nth (List.replicate n default) i = default := by
  induction n generalizing i with
  | zero => rfl
  | succ n ih => cases i with
    | zero => rfl
    | succ i => exact ih i

theorem nth_table (buckets : List Bucket) (most rows back : Nat) :
    nth (table buckets most rows) back = nth (table buckets most (rows - back)) 0 := by
  induction back generalizing rows with
  | zero => rfl
  | succ back ih =>
    cases rows with
    | zero =>
      simp only [Nat.zero_sub, table]
      rw [nth_replicate, nth_replicate]
    | succ rows =>
      rw [table, nth, ih]
      congr 2
      omega

/-- An entry of the table is made from the entries of the rows that each bucket leaves. -/
theorem best_succ (buckets : List Bucket) (rows : Nat) :
    best buckets (rows + 1) =
      match buckets with
      | [] => default
      | b :: others =>
        let candidate := fun b : Bucket => (⟨b, best buckets (rows - (b.1 - 1))⟩ : Candidate)
        let found := least candidate (candidate b) others
        ⟨sortDown (found.bucket.1 :: found.rest.runs), found.total⟩ := by
  cases buckets with
  | nil => rfl
  | cons b others =>
    unfold best
    simp only [table, nth, extend]
    have : ∀ c : Bucket, nth (table (b :: others) (largest (b :: others)) rows) (c.1 - 1)
        = nth (table (b :: others) (largest (b :: others)) (rows - (c.1 - 1))) 0 := fun c => nth_table _ _ _ _
    simp only [this]

theorem best_zero (buckets : List Bucket) : best buckets 0 = ⟨[], 0⟩ := nth_replicate _ _

theorem least_mem (candidate : Bucket → Candidate) (others : List Bucket) (b : Bucket) :
    ∃ c, c ∈ b :: others ∧ least candidate (candidate b) others = candidate c := by
  induction others generalizing b with
  | nil => exact ⟨b, List.mem_cons_self, rfl⟩
  | cons d rest ih =>
    rw [least]
    split
    · obtain ⟨c, hc, e⟩ := ih d
      refine ⟨c, ?_, e⟩
      rcases List.mem_cons.1 hc with h | h
      · simp [h]
      · simp [h]
    · obtain ⟨c, hc, e⟩ := ih b
      refine ⟨c, ?_, e⟩
      rcases List.mem_cons.1 hc with h | h
      · simp [h]
      · simp [h]

theorem before_total {a b : Candidate} (h : before a b = true) : a.total ≤ b.total := by
  simp only [before, Bool.or_eq_true, Bool.and_eq_true, decide_eq_true_eq] at h
  omega

theorem not_before_total {a b : Candidate} (h : ¬ before a b = true) : b.total ≤ a.total := by
  simp only [before, Bool.or_eq_true, Bool.and_eq_true, decide_eq_true_eq] at h
  omega

theorem least_le (candidate : Bucket → Candidate) (others : List Bucket) (found : Candidate) :
    (least candidate found others).total ≤ found.total
      ∧ ∀ c ∈ others, (least candidate found others).total ≤ (candidate c).total := by
  induction others generalizing found with
  | nil => exact ⟨Nat.le_refl _, by simp⟩
  | cons d rest ih =>
    rw [least]
    split
    · rename_i h
      obtain ⟨h1, h2⟩ := ih (candidate d)
      have := before_total h
      refine ⟨by omega, ?_⟩
      intro c hc
      rcases List.mem_cons.1 hc with e | e
      · subst e; exact h1
      · exact h2 c e
    · rename_i h
      obtain ⟨h1, h2⟩ := ih found
      have := not_before_total h
      refine ⟨h1, ?_⟩
      intro c hc
      rcases List.mem_cons.1 hc with e | e
      · subst e; omega
      · exact h2 c e

theorem insertDown_perm (x : Nat) (l : List Nat) : (insertDown x l).Perm (x :: l) := by
  induction l with
  | nil => exact List.Perm.refl _
  | cons y rest ih =>
    rw [insertDown]
    split
    · exact List.Perm.refl _
    · exact (List.Perm.cons y ih).trans (List.Perm.swap x y rest)

theorem sortDown_perm (l : List Nat) : (sortDown l).Perm l := by
  induction l with
  | nil => exact List.Perm.refl _
  | cons x rest ih => exact (insertDown_perm x _).trans (List.Perm.cons x ih)

theorem insertDown_sorted (x : Nat) (l : List Nat) (h : l.Pairwise (· ≥ ·)) : (insertDown x l).Pairwise (· ≥ ·) := by
  induction l with
  | nil => simp [insertDown]
  | cons y rest ih =>
    rw [insertDown]
    rw [List.pairwise_cons] at h
    split
    · rename_i hxy
      rw [List.pairwise_cons, List.pairwise_cons]
      refine ⟨?_, h⟩
      intro z hz
      rcases List.mem_cons.1 hz with e | e
      · subst e; exact hxy
      · have := h.1 z e
        simp only [ge_iff_le] at this ⊢
        omega
    · rename_i hxy
      rw [List.pairwise_cons]
      refine ⟨?_, ih h.2⟩
      intro z hz
      rcases List.mem_cons.1 ((insertDown_perm x rest).mem_iff.1 hz) with e | e
      · simp only [ge_iff_le]; omega
      · exact h.1 z e

theorem sortDown_sorted (l : List Nat) : (sortDown l).Pairwise (· ≥ ·) := by
  induction l with
  | nil => simp [sortDown]
  | cons x rest ih => exact insertDown_sorted x _ ih

/-- The rows that some runs serve. -/
def served (runs : List Nat) : Nat := runs.sum

/-- What the best choice for `rows` rows is made of: a bucket and the best choice for what it leaves. -/
theorem best_step {buckets : List Bucket} (ok : Ok buckets) (rows : Nat) :
    ∃ b ∈ buckets, best buckets (rows + 1) =
        ⟨sortDown (b.1 :: (best buckets (rows + 1 - b.1)).runs), b.2 + (best buckets (rows + 1 - b.1)).seconds⟩
      ∧ ∀ c ∈ buckets, (best buckets (rows + 1)).seconds ≤ c.2 + (best buckets (rows + 1 - c.1)).seconds := by
  cases buckets with
  | nil => exact absurd rfl ok.some
  | cons d others =>
    have shift : ∀ c ∈ d :: others, rows - (c.1 - 1) = rows + 1 - c.1 := by
      intro c hc
      have := ok.sizes c hc
      omega
    have e := best_succ (d :: others) rows
    simp only at e
    obtain ⟨b, hb, hf⟩ := least_mem
      (fun b : Bucket => (⟨b, best (d :: others) (rows - (b.1 - 1))⟩ : Candidate)) others d
    obtain ⟨h1, h2⟩ := least_le (fun b : Bucket => (⟨b, best (d :: others) (rows - (b.1 - 1))⟩ : Candidate)) others
      ⟨d, best (d :: others) (rows - (d.1 - 1))⟩
    refine ⟨b, hb, ?_, ?_⟩
    · rw [e, hf]
      simp only [Candidate.total, shift b hb]
    · intro c hc
      rw [e]
      rcases List.mem_cons.1 hc with hcd | hcd
      · rw [← shift c hc, hcd]
        exact h1
      · rw [← shift c hc]
        exact h2 c hcd

/-- `BucketTable.best` (`steelworks/plans/cost.py`): the chosen runs serve all rows that wait, each is one of the
buckets (so none is larger than the largest), and larger runs come first. -/
theorem best_covers {buckets : List Bucket} (ok : Ok buckets) (rows : Nat) :
    rows ≤ served (best buckets rows).runs
      ∧ (∀ r ∈ (best buckets rows).runs, ∃ b ∈ buckets, b.1 = r)
      ∧ (∀ r ∈ (best buckets rows).runs, r ≤ largest buckets)
      ∧ (best buckets rows).runs.Pairwise (· ≥ ·) := by
  have main : ∀ n rows, rows ≤ n → rows ≤ served (best buckets rows).runs
      ∧ (∀ r ∈ (best buckets rows).runs, ∃ b ∈ buckets, b.1 = r) := by
    intro n
    induction n with
    | zero =>
      intro rows h
      have : rows = 0 := by omega
      subst this
      rw [best_zero]
      simp [served]
    | succ n ih =>
      intro rows h
      cases rows with
      | zero => rw [best_zero]; simp [served]
      | succ rows =>
        obtain ⟨b, hb, e, _⟩ := best_step ok rows
        have hs := ok.sizes b hb
        obtain ⟨i1, i2⟩ := ih (rows + 1 - b.1) (by omega)
        rw [e]
        have p := sortDown_perm (b.1 :: (best buckets (rows + 1 - b.1)).runs)
        constructor
        · unfold served at i1 ⊢
          simp only
          rw [p.sum_nat, List.sum_cons]
          omega
        · intro r hr
          rcases List.mem_cons.1 (p.mem_iff.1 hr) with h | h
          · exact ⟨b, hb, h.symm⟩
          · exact i2 r h
  refine ⟨(main rows rows (Nat.le_refl _)).1, (main rows rows (Nat.le_refl _)).2, ?_, ?_⟩
  · intro r hr
    obtain ⟨b, hb, e⟩ := (main rows rows (Nat.le_refl _)).2 r hr
    rw [← e]
    exact le_largest hb
  · cases rows with
    | zero => rw [best_zero]; simp
    | succ rows =>
      obtain ⟨b, _, e, _⟩ := best_step ok rows
      rw [e]
      exact sortDown_sorted _

/-- `GraphPlan.first_run` (`steelworks/plans/graph.py`): where rows wait, the first run takes at least one of them. -/
theorem first_run_serves {buckets : List Bucket} (ok : Ok buckets) (rows : Nat) (h : 0 < rows) :
    ∃ first rest, (best buckets rows).runs = first :: rest ∧ 0 < min rows first := by
  obtain ⟨h1, h2, _, _⟩ := best_covers ok rows
  cases hr : (best buckets rows).runs with
  | nil => rw [hr] at h1; simp [served] at h1; omega
  | cons first rest =>
    refine ⟨first, rest, rfl, ?_⟩
    obtain ⟨b, hb, e⟩ := h2 first (by rw [hr]; exact List.mem_cons_self)
    have := ok.sizes b hb
    omega

/-- Rows that some buckets serve, and what they take. -/
def rowsOf (runs : List Bucket) : Nat := (runs.map Prod.fst).sum
def timeOf (runs : List Bucket) : Nat := (runs.map Prod.snd).sum

/-- `BucketTable.best` (`steelworks/plans/cost.py`): no other runs that serve the rows take less time. -/
theorem best_least {buckets : List Bucket} (ok : Ok buckets) (runs : List Bucket) (known : ∀ b ∈ runs, b ∈ buckets)
    (rows : Nat) (enough : rows ≤ rowsOf runs) : (best buckets rows).seconds ≤ timeOf runs := by
  induction runs generalizing rows with
  | nil =>
    have : rows = 0 := by simp [rowsOf] at enough; omega
    subst this
    rw [best_zero]
    exact Nat.zero_le _
  | cons b rest ih =>
    cases rows with
    | zero => rw [best_zero]; exact Nat.zero_le _
    | succ rows =>
      obtain ⟨_, _, _, h⟩ := best_step ok rows
      have hb := h b (known b List.mem_cons_self)
      have := ih (fun c hc => known c (List.mem_cons_of_mem _ hc)) (rows + 1 - b.1) (by
        simp only [rowsOf, List.map_cons, List.sum_cons] at enough ⊢
        omega)
      simp only [timeOf, List.map_cons, List.sum_cons] at this ⊢
      omega

/-- `BucketTable.best` (`steelworks/plans/cost.py`): and its time is that of runs which serve the rows: those chosen. -/
theorem best_time {buckets : List Bucket} (ok : Ok buckets) (rows : Nat) :
    ∃ runs : List Bucket, (∀ b ∈ runs, b ∈ buckets) ∧ (runs.map Prod.fst).Perm (best buckets rows).runs
      ∧ timeOf runs = (best buckets rows).seconds := by
  have main : ∀ n rows, rows ≤ n → ∃ runs : List Bucket, (∀ b ∈ runs, b ∈ buckets)
      ∧ (runs.map Prod.fst).Perm (best buckets rows).runs ∧ timeOf runs = (best buckets rows).seconds := by
    intro n
    induction n with
    | zero =>
      intro rows h
      have : rows = 0 := by omega
      subst this
      exact ⟨[], by simp, by rw [best_zero]; exact List.Perm.refl _, by rw [best_zero]; rfl⟩
    | succ n ih =>
      intro rows h
      cases rows with
      | zero => exact ⟨[], by simp, by rw [best_zero]; exact List.Perm.refl _, by rw [best_zero]; rfl⟩
      | succ rows =>
        obtain ⟨b, hb, e, _⟩ := best_step ok rows
        have hs := ok.sizes b hb
        obtain ⟨runs, r1, r2, r3⟩ := ih (rows + 1 - b.1) (by omega)
        refine ⟨b :: runs, ?_, ?_, ?_⟩
        · intro c hc
          rcases List.mem_cons.1 hc with h | h
          · subst h; exact hb
          · exact r1 c h
        · rw [e, List.map_cons]
          exact (List.Perm.cons b.1 r2).trans (sortDown_perm _).symm
        · rw [e]
          simp only [timeOf, List.map_cons, List.sum_cons] at r3 ⊢
          omega
  exact main rows rows (Nat.le_refl _)

/-! ## Lengths -/

/-- `GraphPlan._bucket`: the first captured length (they ascend) that holds `length`; otherwise `length` itself. -/
def lengthBucket (length : Nat) : List Nat → Nat
  | [] => length
  | b :: rest => if length ≤ b then b else lengthBucket length rest

/-- `GraphPlan._bucket` (`steelworks/plans/graph.py`): the bucket holds the request; where a captured length does, it is
the smallest of them; beyond the largest, no padding is added. -/
theorem lengthBucket_covers (length : Nat) (lengths : List Nat) (sorted : lengths.Pairwise (· ≤ ·)) :
    length ≤ lengthBucket length lengths
      ∧ (∀ b ∈ lengths, length ≤ b → lengthBucket length lengths ≤ b)
      ∧ ((∃ b ∈ lengths, length ≤ b) → lengthBucket length lengths ∈ lengths)
      ∧ ((∀ b ∈ lengths, b < length) → lengthBucket length lengths = length) := by
  induction lengths with
  | nil => simp [lengthBucket]
  | cons b rest ih =>
    rw [List.pairwise_cons] at sorted
    obtain ⟨h1, h2, h3, h4⟩ := ih sorted.2
    rw [lengthBucket]
    split
    · rename_i h
      refine ⟨h, ?_, fun _ => List.mem_cons_self, ?_⟩
      · intro c hc hlc
        rcases List.mem_cons.1 hc with e | e
        · omega
        · exact sorted.1 c e
      · intro all
        have := all b List.mem_cons_self
        omega
    · rename_i h
      refine ⟨h1, ?_, ?_, ?_⟩
      · intro c hc hlc
        rcases List.mem_cons.1 hc with e | e
        · omega
        · exact h2 c e hlc
      · rintro ⟨c, hc, hlc⟩
        rcases List.mem_cons.1 hc with e | e
        · omega
        · exact List.mem_cons_of_mem _ (h3 ⟨c, e, hlc⟩)
      · intro all
        exact h4 fun c hc => all c (List.mem_cons_of_mem _ hc)

/-- `-(-length // multiple) * multiple` of `InputReader._bucket_of`. -/
def multipleBucket (length multiple : Nat) : Nat := (length + multiple - 1) / multiple * multiple

/-- `InputReader._bucket_of` (`steelworks/plans/inputs.py`): the least multiple that holds the request. -/
theorem multipleBucket_covers (length multiple : Nat) (h : 0 < multiple) :
    length ≤ multipleBucket length multiple ∧ multipleBucket length multiple < length + multiple
      ∧ multiple ∣ multipleBucket length multiple := by
  unfold multipleBucket
  have h1 := Nat.div_add_mod (length + multiple - 1) multiple
  have h2 := Nat.mod_lt (length + multiple - 1) h
  rw [Nat.mul_comm] at h1
  refine ⟨by omega, by omega, Nat.dvd_mul_left _ _⟩

/-- `_deterministic_bucket`: at least one place of padding, unless the model's positions end. -/
def deterministicBucket (length multiple : Nat) (limit : Option Nat) : Nat :=
  let wide := (length / multiple + 1) * multiple
  match limit with
  | none => wide
  | some most => min wide (max length most)

/-- `_deterministic_bucket` (`steelworks/plans/eager.py`): holds the request, never beyond the model's positions unless
the request is, and pads by at least one where that is possible. -/
theorem deterministicBucket_covers (length multiple : Nat) (limit : Option Nat) (h : 0 < multiple) :
    length ≤ deterministicBucket length multiple limit
      ∧ (∀ most, limit = some most → deterministicBucket length multiple limit ≤ max length most)
      ∧ ((∀ most, limit = some most → length < most) → length < deterministicBucket length multiple limit) := by
  have wide : length < (length / multiple + 1) * multiple := by
    have h1 := Nat.div_add_mod length multiple
    have h2 := Nat.mod_lt length h
    rw [Nat.mul_comm] at h1
    rw [Nat.succ_mul]
    omega
  unfold deterministicBucket
  cases limit with
  | none => exact ⟨by simp only; omega, by simp, fun _ => wide⟩
  | some most =>
    refine ⟨by simp only; omega, ?_, ?_⟩
    · intro m hm
      cases hm
      simp only
      omega
    · intro hm
      have := hm most rfl
      simp only
      omega

end
end Steelworks.Chooser
