/-!
Batches with padding and masks: `merge` and `cut` of `steelworks/plans/batches.py`, `probe_layout` there.

The model is any function that works on each row of a batch by itself. What it answers at padded positions, and how it
gets there, is left open; `Honours` is what `probe_layout` asks of a model before padding is used.
-/
namespace Steelworks.Batch
noncomputable section

/-- A request: rows of one length (`Reading`). -/
structure Request (τ : Type) where
  length : Nat
  rows : List (List τ)

/-- All rows have the request's length. -/
def Request.Ok (r : Request τ) : Prop := ∀ x ∈ r.rows, x.length = r.length

/-- A row padded to `length`: `none` is a position with the mask 0. -/
def pad (length : Nat) (row : List τ) : List (Option τ) :=
  row.map some ++ List.replicate (length - row.length) none

/-- The longest of some requests. -/
def longest : List (Request τ) → Nat
  | [] => 0
  | r :: rest => max r.length (longest rest)

/-- The rows of all requests, padded. -/
def padded (length : Nat) : List (Request τ) → List (List (Option τ))
  | [] => []
  | r :: rest => r.rows.map (pad length) ++ padded length rest

/-- The last row, again and again, until there are `rows`. -/
def fill (rows : Nat) (batch : List β) : List β :=
  match batch.getLast? with
  | none => batch
  | some last => batch ++ List.replicate (rows - batch.length) last

/-- `merge`: padded to `length` (or to the longest request, where that is longer), and filled to `rows` rows. -/
def merge (requests : List (Request τ)) (length rows : Nat) : List (List (Option τ)) :=
  fill rows (padded (max length (longest requests)) requests)

/-- `cut`: each request's rows, each cut to the request's length. -/
def cut : List (List β) → List (Request τ) → List (List (List β))
  | _, [] => []
  | output, r :: rest =>
    ((output.take r.rows.length).map (List.take r.length)) :: cut (output.drop r.rows.length) rest

/-- The model honours its mask: at a row's own positions it answers the same with padding behind them. -/
def Honours (model : List (Option τ) → List β) : Prop :=
  ∀ (row : List τ) (length : Nat), row.length ≤ length →
    (model (pad length row)).take row.length = (model (pad row.length row)).take row.length

/-- What a request is answered when it runs alone. -/
def alone (model : List (Option τ) → List β) (r : Request τ) : List (List (List β)) :=
  cut ((merge [r] 0 0).map model) [r]

theorem pad_own (row : List τ) (n : Nat) (h : row.length = n) : pad n row = row.map some := by
  simp [pad, h]

theorem length_le_longest {requests : List (Request τ)} {r : Request τ} (h : r ∈ requests) :
    r.length ≤ longest requests := by
  induction requests with
  | nil => simp at h
  | cons q rest ih =>
    rw [longest]
    rcases List.mem_cons.1 h with e | e
    · subst e; omega
    · have := ih e; omega

theorem fill_prefix (rows : Nat) (batch : List β) : ∃ extra, fill rows batch = batch ++ extra := by
  unfold fill
  split
  · exact ⟨[], by simp⟩
  · exact ⟨_, rfl⟩

theorem cut_padded (model : List (Option τ) → List β) (honours : Honours model) (length : Nat)
    (requests : List (Request τ)) (ok : ∀ r ∈ requests, r.Ok) (fits : ∀ r ∈ requests, r.length ≤ length)
    (extra : List (List β)) :
    cut ((padded length requests).map model ++ extra) requests
      = requests.map fun r => r.rows.map fun x => (model (pad r.length x)).take r.length := by
  induction requests with
  | nil => rfl
  | cons r rest ih =>
    rw [padded, List.map_append, List.append_assoc, cut, List.map_cons]
    have n : ((r.rows.map (pad length)).map model).length = r.rows.length := by simp
    rw [List.take_append_of_le_length (by omega), List.drop_append_of_le_length (by omega),
      List.take_of_length_le (by omega), List.drop_of_length_le (by omega), List.nil_append,
      ih (fun q hq => ok q (List.mem_cons_of_mem _ hq)) (fun q hq => fits q (List.mem_cons_of_mem _ hq))]
    congr 1
    rw [List.map_map, List.map_map]
    apply List.map_congr_left
    intro x hx
    have hl : x.length = r.length := ok r List.mem_cons_self x hx
    have hf : r.length ≤ length := fits r List.mem_cons_self
    simp only [Function.comp]
    have := honours x length (by omega)
    rw [hl] at this
    exact this

/-- `merge`, a model, `cut` (`steelworks/plans/batches.py`): whatever a request is batched with, padded to and filled up
with, it is answered what it is answered alone; and answers are not mixed up. -/
theorem alone_eq_batched (model : List (Option τ) → List β) (honours : Honours model)
    (requests : List (Request τ)) (ok : ∀ r ∈ requests, r.Ok) (length rows : Nat) :
    cut ((merge requests length rows).map model) requests = (requests.map (alone model)).flatten := by
  have single : ∀ r : Request τ, r.Ok → alone model r = [r.rows.map fun x => (model (pad r.length x)).take r.length] := by
    intro r hr
    unfold alone merge
    obtain ⟨extra, e⟩ := fill_prefix 0 (padded (max 0 (longest [r])) [r])
    rw [e, List.map_append, cut_padded model honours _ [r] (by simpa using hr) (by simp [longest])]
    rfl
  unfold merge
  obtain ⟨extra, e⟩ := fill_prefix rows (padded (max length (longest requests)) requests)
  rw [e, List.map_append, cut_padded model honours _ requests ok
    (fun r hr => by have := length_le_longest hr; omega)]
  clear e
  induction requests with
  | nil => rfl
  | cons r rest ih =>
    rw [List.map_cons, List.map_cons, List.flatten_cons, single r (ok r List.mem_cons_self),
      List.singleton_append, ih (fun q hq => ok q (List.mem_cons_of_mem _ hq))]

/-- `merge` (`steelworks/plans/batches.py`): how many rows a merged batch has: those of its requests, or `rows` if that is more (and there is one at all). -/
theorem merge_rows (requests : List (Request τ)) (length rows : Nat) (h : padded (max length (longest requests)) requests ≠ []) :
    (merge requests length rows).length = max rows ((requests.map fun r => r.rows.length).sum) := by
  have count : ∀ (l : Nat) (requests : List (Request τ)),
      (padded l requests).length = (requests.map fun r => r.rows.length).sum := by
    intro l requests
    induction requests with
    | nil => rfl
    | cons r rest ih => rw [padded, List.length_append, List.length_map, List.map_cons, List.sum_cons, ih]
  unfold merge fill
  cases hl : (padded (max length (longest requests)) requests).getLast? with
  | none => exact absurd (List.getLast?_eq_none_iff.1 hl) h
  | some last =>
    simp only [List.length_append, List.length_replicate, count]
    omega

end
end Steelworks.Batch
