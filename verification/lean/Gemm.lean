/-!
The matrix product: `steelworks/kernels/metal/gemm/index.h` (which terms and which tiles), `gemm/gemm.h`
(`gemm_tiled`, its loop), `gemm/split.h` (`gemm_combine`) and `gemm/vector.h` (`gemv_dot`).

Numbers are of any type, and one step of a sum is any function of what was summed so far and the place of the term:
what is proved with no law holds bit for bit for floating point.
-/
namespace Steelworks.Gemm
noncomputable section

/-! ## Terms: the loop over K -/

/-- `count` terms from `first` on, in order. The naive sum is `run step init 0 k`. -/
def run (step : α → Nat → α) (acc : α) (first : Nat) : Nat → α
  | 0 => acc
  | n + 1 => run step (step acc first) (first + 1) n

/-- `gemm_steps` of `gemm/index.h`. -/
def steps (terms tile : Nat) : Nat := (terms + tile - 1) / tile

/-- `gemm_first_step` of `gemm/index.h`. -/
def firstStep (terms tile : Nat) : Nat := terms - (terms - 1) / tile * tile

/-- `gemm_step_begin` of `gemm/index.h`, and 0 for the first step, which begins where the block does. -/
def stepBegin (step terms tile : Nat) : Nat :=
  if step = 0 then 0 else firstStep terms tile + (step - 1) * tile

/-- How many terms a step takes: what is left over in the first, a whole tile in the others (`GemmBlock::run`). -/
def stepWidth (step terms tile : Nat) : Nat := if step = 0 then firstStep terms tile else tile

/-- `f` done `n` times. -/
def again (f : α → α) : Nat → α → α
  | 0, x => x
  | n + 1, x => again f n (f x)

/-- The loop of `GemmBlock::run` in `gemm/gemm.h`: `count` steps from step `s` on. A tile always has `tile` places;
those behind the terms of the step are padding, and `pad` is what adding a product of zeros does. -/
def loop (step : α → Nat → α) (pad : α → α) (terms tile : Nat) (acc : α) (s : Nat) : Nat → α
  | 0 => acc
  | n + 1 =>
    let summed := run step acc (stepBegin s terms tile) (stepWidth s terms tile)
    loop step pad terms tile (again pad (tile - stepWidth s terms tile) summed) (s + 1) n

theorem run_append (step : α → Nat → α) (acc : α) (first m n : Nat) :
    run step acc first (m + n) = run step (run step acc first m) (first + m) n := by
  induction m generalizing acc first with
  | zero => simp [run]
  | succ m ih =>
    have : m + 1 + n = (m + n) + 1 := by omega
    rw [this, run, run, ih]
    congr 1
    omega

theorem again_id (pad : α → α) (h : ∀ x, pad x = x) (n : Nat) (x : α) : again pad n x = x := by
  induction n generalizing x with
  | zero => rfl
  | succ n ih => simp [again, ih, h]

theorem stepBegin_succ (s terms tile : Nat) :
    stepBegin (s + 1) terms tile = stepBegin s terms tile + stepWidth s terms tile := by
  unfold stepBegin stepWidth
  by_cases h : s = 0
  · simp [h]
  · obtain ⟨p, rfl⟩ : ∃ p, s = p + 1 := ⟨s - 1, by omega⟩
    simp [Nat.succ_mul]
    omega

theorem stepBegin_mono (s n terms tile : Nat) : stepBegin s terms tile ≤ stepBegin (s + n) terms tile := by
  induction n with
  | zero => simp
  | succ n ih =>
    rw [← Nat.add_assoc, stepBegin_succ]
    omega

theorem loop_eq_run (step : α → Nat → α) (pad : α → α) (hpad : ∀ x, pad x = x) (terms tile : Nat) (acc : α)
    (s n : Nat) :
    loop step pad terms tile acc s n
      = run step acc (stepBegin s terms tile) (stepBegin (s + n) terms tile - stepBegin s terms tile) := by
  induction n generalizing acc s with
  | zero => simp [loop, run]
  | succ n ih =>
    rw [loop, again_id pad hpad, ih]
    have hs := stepBegin_succ s terms tile
    have hm := stepBegin_mono (s + 1) n terms tile
    rw [show s + (n + 1) = s + 1 + n by omega,
      show stepBegin (s + 1 + n) terms tile - stepBegin s terms tile
        = stepWidth s terms tile + (stepBegin (s + 1 + n) terms tile - stepBegin (s + 1) terms tile) by omega,
      run_append, ← hs]

/-- All steps together take all terms. -/
theorem stepBegin_steps (terms tile : Nat) (ht : 0 < tile) : stepBegin (steps terms tile) terms tile = terms := by
  unfold steps stepBegin firstStep
  by_cases h : terms = 0
  · subst h
    rw [Nat.div_eq_of_lt (show 0 + tile - 1 < tile by omega)]
    simp
  · have e : (terms + tile - 1) / tile = (terms - 1) / tile + 1 := by
      rw [show terms + tile - 1 = (terms - 1) + tile by omega, Nat.add_div_right _ ht]
    have le : (terms - 1) / tile * tile ≤ terms - 1 := Nat.div_mul_le_self _ _
    rw [e]
    simp
    omega

/-- `gemm_tiled` (`steelworks/kernels/metal/gemm/gemm.h`), one element: for any tile size the loop over tiles computes
what the naive loop computes, whatever a step does. Nothing is assumed of the arithmetic but that adding the padding's
product of zeros changes nothing (in floating point: of anything but -0). -/
theorem kloop_eq_naive (step : α → Nat → α) (pad : α → α) (hpad : ∀ x, pad x = x) (init : α) (terms tile : Nat)
    (ht : 0 < tile) :
    loop step pad terms tile init 0 (steps terms tile) = run step init 0 terms := by
  rw [loop_eq_run step pad hpad, Nat.zero_add, stepBegin_steps terms tile ht]
  simp [stepBegin]

/-- `gemm_tiled` (`gemm/gemm.h`): no law at all is needed where K is a multiple of the tile: then no place is padding. -/
theorem kloop_eq_naive_whole (step : α → Nat → α) (pad : α → α) (init : α) (q tile : Nat) (ht : 0 < tile) :
    loop step pad (q * tile) tile init 0 (steps (q * tile) tile) = run step init 0 (q * tile) := by
  have first : 0 < q → firstStep (q * tile) tile = tile := by
    intro hq
    unfold firstStep
    obtain ⟨p, rfl⟩ : ∃ p, q = p + 1 := ⟨q - 1, by omega⟩
    have : ((p + 1) * tile - 1) / tile = p := by
      rw [Nat.succ_mul, show p * tile + tile - 1 = (tile - 1) + tile * p by rw [Nat.mul_comm tile p]; omega,
        Nat.add_mul_div_left _ _ ht, Nat.div_eq_of_lt (by omega)]
      omega
    rw [this]
    rw [Nat.succ_mul]
    omega
  have same : ∀ n s acc, 0 < q → loop step pad (q * tile) tile acc s n = loop step id (q * tile) tile acc s n := by
    intro n
    induction n with
    | zero => intros; rfl
    | succ n ih =>
      intro s acc hq
      have w : tile - stepWidth s (q * tile) tile = 0 := by
        unfold stepWidth
        split <;> simp [first hq]
      simp only [loop, w, again]
      exact ih _ _ hq
  rcases Nat.eq_zero_or_pos q with h | h
  · subst h
    simp [steps, loop, run, Nat.div_eq_of_lt (show tile - 1 < tile by omega)]
  · rw [same _ _ _ h, kloop_eq_naive step id (fun _ => rfl) init _ tile ht]

/-! ## Tiles: which threadgroup writes which element -/

/-- `gemm_band_rows` of `gemm/index.h`. -/
def bandRows (group tilesM tilesN band : Nat) : Nat :=
  let first := group / (band * tilesN) * band
  if tilesM - first < band then tilesM - first else band

/-- `gemm_tile_row` of `gemm/index.h`. -/
def tileRow (group tilesM tilesN band : Nat) : Nat :=
  group / (band * tilesN) * band + group % (band * tilesN) % bandRows group tilesM tilesN band

/-- `gemm_tile_column` of `gemm/index.h`. -/
def tileColumn (group tilesM tilesN band : Nat) : Nat :=
  group % (band * tilesN) / bandRows group tilesM tilesN band

/-- The threadgroup of a tile: the inverse of the two above. -/
def groupOf (row column tilesM tilesN band : Nat) : Nat :=
  let first := row / band * band
  let rows := if tilesM - first < band then tilesM - first else band
  first * tilesN + column * rows + (row - first)

/-- What `bandRows` amounts to for a threadgroup of the grid. -/
theorem group_facts {g tm tn band : Nat} (hb : 0 < band) (hg : g < tm * tn) :
    let q := g / (band * tn)
    let x := g % (band * tn)
    let rows := bandRows g tm tn band
    0 < rows ∧ rows ≤ band ∧ q * band + rows ≤ tm ∧ x < tn * rows ∧ g = q * band * tn + x := by
  intro q x rows
  have hn : 0 < tn := by
    rcases Nat.eq_zero_or_pos tn with h | h
    · subst h; simp at hg
    · exact h
  have hB : 0 < band * tn := Nat.mul_pos hb hn
  have e : q * band * tn + x = g := by
    have := Nat.div_add_mod g (band * tn)
    rw [Nat.mul_comm] at this
    rw [Nat.mul_assoc]
    exact this
  have hx : x < band * tn := Nat.mod_lt _ hB
  have hq : q * band < tm := by
    apply Nat.lt_of_mul_lt_mul_right (a := tn)
    omega
  have hr : rows = if tm - q * band < band then tm - q * band else band := rfl
  refine ⟨?_, ?_, ?_, ?_, e.symm⟩
  · rw [hr]; split <;> omega
  · rw [hr]; split <;> omega
  · rw [hr]; split <;> omega
  · rw [hr]
    split
    · rw [Nat.mul_comm, Nat.sub_mul]
      omega
    · rw [Nat.mul_comm]; exact hx

theorem tileRow_lt {g tm tn band : Nat} (hb : 0 < band) (hg : g < tm * tn) : tileRow g tm tn band < tm := by
  obtain ⟨h1, _, h3, _, _⟩ := group_facts hb hg
  have := Nat.mod_lt (g % (band * tn)) h1
  unfold tileRow
  omega

theorem tileColumn_lt {g tm tn band : Nat} (hb : 0 < band) (hg : g < tm * tn) : tileColumn g tm tn band < tn := by
  obtain ⟨h1, _, _, h4, _⟩ := group_facts hb hg
  exact (Nat.div_lt_iff_lt_mul h1).2 h4

/-- Two threadgroups never have the same tile: the group can be told from the tile. -/
theorem groupOf_tile {g tm tn band : Nat} (hb : 0 < band) (hg : g < tm * tn) :
    groupOf (tileRow g tm tn band) (tileColumn g tm tn band) tm tn band = g := by
  obtain ⟨h1, h2, _, _, h5⟩ := group_facts hb hg
  have hm := Nat.mod_lt (g % (band * tn)) h1
  have hrow : tileRow g tm tn band / band = g / (band * tn) := by
    unfold tileRow
    rw [Nat.add_comm, Nat.add_mul_div_right _ _ hb, Nat.div_eq_of_lt (by omega), Nat.zero_add]
  unfold groupOf
  simp only [hrow]
  have hd := Nat.div_add_mod (g % (band * tn)) (bandRows g tm tn band)
  have hsub : tileRow g tm tn band - g / (band * tn) * band
      = g % (band * tn) % bandRows g tm tn band := by unfold tileRow; omega
  rw [hsub]
  change g / (band * tn) * band * tn + tileColumn g tm tn band * bandRows g tm tn band
    + g % (band * tn) % bandRows g tm tn band = g
  unfold tileColumn
  rw [Nat.mul_comm (g % (band * tn) / _)]
  omega

/-- Every tile has a threadgroup. -/
theorem tile_groupOf {row column tm tn band : Nat} (hb : 0 < band) (hr : row < tm) (hc : column < tn) :
    groupOf row column tm tn band < tm * tn
      ∧ tileRow (groupOf row column tm tn band) tm tn band = row
      ∧ tileColumn (groupOf row column tm tn band) tm tn band = column := by
  have hq : row / band * band ≤ row := Nat.div_mul_le_self _ _
  have hm : row - row / band * band < band := by
    have := Nat.mod_lt row hb
    have := Nat.div_add_mod row band
    rw [Nat.mul_comm] at this
    omega
  generalize hqq : row / band = q at hq hm
  let rows := if tm - q * band < band then tm - q * band else band
  have hrows : rows = if tm - q * band < band then tm - q * band else band := rfl
  have r1 : 0 < rows ∧ rows ≤ band ∧ q * band + rows ≤ tm ∧ row - q * band < rows := by
    rw [hrows]
    split <;> omega
  obtain ⟨ra, rb, rc, rd⟩ := r1
  have hx : column * rows + (row - q * band) < tn * rows := by
    have : (column + 1) * rows ≤ tn * rows := Nat.mul_le_mul_right _ hc
    rw [Nat.succ_mul] at this
    omega
  have hB : tn * rows ≤ band * tn := by rw [Nat.mul_comm]; exact Nat.mul_le_mul_right _ rb
  have hg : groupOf row column tm tn band = (column * rows + (row - q * band)) + band * tn * q := by
    unfold groupOf
    simp only [hqq]
    change q * band * tn + column * rows + (row - q * band) = _
    have : q * band * tn = band * tn * q := by rw [Nat.mul_comm q band, Nat.mul_assoc, Nat.mul_assoc, Nat.mul_comm q tn]
    omega
  have hpos : 0 < band * tn := Nat.mul_pos hb (by omega)
  have hdiv : groupOf row column tm tn band / (band * tn) = q := by
    rw [hg, Nat.add_mul_div_left _ _ hpos, Nat.div_eq_of_lt (by omega), Nat.zero_add]
  have hmod : groupOf row column tm tn band % (band * tn) = column * rows + (row - q * band) := by
    rw [hg, Nat.add_mul_mod_self_left, Nat.mod_eq_of_lt (by omega)]
  have hbr : bandRows (groupOf row column tm tn band) tm tn band = rows := by
    unfold bandRows
    simp only [hdiv]
    rfl
  refine ⟨?_, ?_, ?_⟩
  · rw [hg]
    have h : (q * band + rows) * tn ≤ tm * tn := Nat.mul_le_mul_right _ rc
    rw [Nat.add_mul] at h
    have e1 : q * band * tn = band * tn * q := by rw [Nat.mul_comm q band, Nat.mul_assoc, Nat.mul_assoc, Nat.mul_comm q tn]
    have e2 : rows * tn = tn * rows := Nat.mul_comm _ _
    omega
  · unfold tileRow
    rw [hdiv, hmod, hbr, Nat.add_comm (column * rows), Nat.add_mul_mod_self_right, Nat.mod_eq_of_lt rd]
    omega
  · unfold tileColumn
    rw [hmod, hbr, Nat.add_comm (column * rows), Nat.add_mul_div_right _ _ ra, Nat.div_eq_of_lt rd, Nat.zero_add]

/-- The sizes of a launch (`GemmParams`, `GemmTile`): m x n results in tiles of bm x bn. -/
structure Shape where
  m : Nat
  n : Nat
  bm : Nat
  bn : Nat
  band : Nat

/-- `_tiles` of `steelworks/kernels/metal/gemm.py`. -/
def Shape.tilesM (s : Shape) : Nat := (s.m + s.bm - 1) / s.bm
def Shape.tilesN (s : Shape) : Nat := (s.n + s.bn - 1) / s.bn

/-- The sizes of a tile and the band are positive. -/
structure Shape.Ok (s : Shape) : Prop where
  bm : 0 < s.bm
  bn : 0 < s.bn
  band : 0 < s.band

/-- `f 0`, `f 1`, ..., `f (n - 1)` one behind the other. -/
def flat (f : Nat → List β) : Nat → List β
  | 0 => []
  | n + 1 => flat f n ++ f n

/-- `f` of each item, one behind the other. -/
def flatOver (f : Nat → List β) : List Nat → List β
  | [] => []
  | x :: rest => f x ++ flatOver f rest

/-- The elements that a threadgroup stores (`gemm_tiled` and `fragments_store`): those of its tile that the result has. -/
def places (s : Shape) (group : Nat) : List (Nat × Nat) :=
  let row := tileRow group s.tilesM s.tilesN s.band * s.bm
  let column := tileColumn group s.tilesM s.tilesN s.band * s.bn
  flat (fun r => flat (fun c => if row + r < s.m ∧ column + c < s.n then [(row + r, column + c)] else []) s.bn) s.bm

theorem count_flat [BEq β] (a : β) (f : Nat → List β) (k x n : Nat)
    (h : ∀ i, i < n → (f i).count a = if i = k then x else 0) :
    (flat f n).count a = if k < n then x else 0 := by
  induction n with
  | zero => simp [flat]
  | succ n ih =>
    rw [flat, List.count_append, ih (fun i hi => h i (by omega)), h n (by omega)]
    by_cases h1 : n = k
    · subst h1; simp
    · by_cases h2 : k < n
      · simp [h1, h2, show k < n + 1 by omega]
      · simp [h1, h2, show ¬ k < n + 1 by omega]

theorem tile_split {i b q r : Nat} (hr : r < b) : q * b + r = i ↔ r = i % b ∧ q = i / b := by
  constructor
  · intro h
    subst h
    constructor
    · rw [Nat.add_comm, Nat.add_mul_mod_self_right, Nat.mod_eq_of_lt hr]
    · rw [Nat.add_comm, Nat.add_mul_div_right _ _ (by omega), Nat.div_eq_of_lt hr, Nat.zero_add]
  · rintro ⟨h1, h2⟩
    subst h1; subst h2
    rw [Nat.mul_comm]
    exact Nat.div_add_mod i b

theorem count_places (s : Shape) (ok : s.Ok) (group i j : Nat) :
    (places s group).count (i, j) =
      if tileRow group s.tilesM s.tilesN s.band = i / s.bm ∧ tileColumn group s.tilesM s.tilesN s.band = j / s.bn
          ∧ i < s.m ∧ j < s.n then 1 else 0 := by
  unfold places
  generalize tileRow group s.tilesM s.tilesN s.band = row
  generalize tileColumn group s.tilesM s.tilesN s.band = column
  have inner : ∀ r, r < s.bm →
      (flat (fun c =>
        if row * s.bm + r < s.m ∧ column * s.bn + c < s.n then [(row * s.bm + r, column * s.bn + c)] else [])
        s.bn).count (i, j)
      = if r = i % s.bm then (if row = i / s.bm ∧ column = j / s.bn ∧ i < s.m ∧ j < s.n then 1 else 0) else 0 := by
    intro r hr
    have hi := @tile_split i s.bm row r hr
    rw [count_flat (i, j) _ (j % s.bn)
      (if r = i % s.bm then (if row = i / s.bm ∧ column = j / s.bn ∧ i < s.m ∧ j < s.n then 1 else 0) else 0)]
    · simp [Nat.mod_lt _ ok.bn]
    · intro c hc
      have hj := @tile_split j s.bn column c hc
      by_cases hin : row * s.bm + r < s.m ∧ column * s.bn + c < s.n
      · rw [if_pos hin, List.count_singleton]
        by_cases hij : row * s.bm + r = i ∧ column * s.bn + c = j
        · obtain ⟨e1, e2⟩ := hij
          obtain ⟨a1, a2⟩ := hi.1 e1
          obtain ⟨b1, b2⟩ := hj.1 e2
          have : i < s.m ∧ j < s.n := by omega
          rw [e1, e2]
          simp [← a1, ← b1, a2, b2, this]
        · have : ((row * s.bm + r, column * s.bn + c) == (i, j)) = false := by
            rw [beq_eq_false_iff_ne]
            intro e
            exact hij ⟨congrArg Prod.fst e, congrArg Prod.snd e⟩
          rw [this]
          by_cases h1 : c = j % s.bn
          · by_cases h2 : r = i % s.bm
            · have : ¬ (row = i / s.bm ∧ column = j / s.bn ∧ i < s.m ∧ j < s.n) := by
                rintro ⟨h3, h4, _⟩
                exact hij ⟨hi.2 ⟨h2, h3⟩, hj.2 ⟨h1, h4⟩⟩
              simp [this]
            · simp [h2]
          · simp [h1]
      · rw [if_neg hin]
        by_cases h1 : c = j % s.bn
        · by_cases h2 : r = i % s.bm
          · have : ¬ (row = i / s.bm ∧ column = j / s.bn ∧ i < s.m ∧ j < s.n) := by
              rintro ⟨h3, h4, h5, h6⟩
              have e1 := hi.2 ⟨h2, h3⟩
              have e2 := hj.2 ⟨h1, h4⟩
              omega
            simp [this]
          · simp [h2]
        · simp [h1]
  rw [count_flat (i, j) _ (i % s.bm) _ _ inner]
  simp [Nat.mod_lt _ ok.bm]

theorem flatOver_eq (f : Nat → List β) (l : List Nat) : flatOver f l = l.flatMap f := by
  induction l with
  | nil => rfl
  | cons x rest ih => rw [flatOver, ih, List.flatMap_cons]

theorem flat_eq (f : Nat → List β) (n : Nat) : flat f n = (List.range n).flatMap f := by
  induction n with
  | zero => rfl
  | succ n ih => simp [flat, ih, List.range_succ]

theorem tile_in_grid {i m b : Nat} (hb : 0 < b) (hi : i < m) : i / b < (m + b - 1) / b := by
  rw [Nat.div_lt_iff_lt_mul hb]
  have h1 := Nat.div_add_mod (m + b - 1) b
  have h2 := Nat.mod_lt (m + b - 1) hb
  rw [Nat.mul_comm] at h1
  omega

/-- `gemm_tiled` (`gemm/gemm.h`) over the grid of `_launch_product` (`gemm.py`), with `gemm_tile_row` and
`gemm_tile_column` of `gemm/index.h`: in whatever order the threadgroups run, each element of the result is written
exactly once, and nothing else is written. -/
theorem written_once (s : Shape) (ok : s.Ok) (groups : List Nat)
    (all : groups.Perm (List.range (s.tilesM * s.tilesN))) (i j : Nat) :
    (flatOver (places s) groups).count (i, j) = if i < s.m ∧ j < s.n then 1 else 0 := by
  rw [flatOver_eq, (all.flatMap_right (places s)).count_eq, ← flat_eq]
  by_cases h : i < s.m ∧ j < s.n
  · have hr := tile_in_grid ok.bm h.1
    have hc := tile_in_grid ok.bn h.2
    obtain ⟨g1, g2, g3⟩ := tile_groupOf (tm := s.tilesM) (tn := s.tilesN) ok.band hr hc
    rw [count_flat (i, j) _ (groupOf (i / s.bm) (j / s.bn) s.tilesM s.tilesN s.band) 1]
    · simp [g1, h]
    · intro g hg
      rw [count_places s ok]
      by_cases e : g = groupOf (i / s.bm) (j / s.bn) s.tilesM s.tilesN s.band
      · subst e
        simp [g2, g3, h]
      · have : ¬ (tileRow g s.tilesM s.tilesN s.band = i / s.bm ∧ tileColumn g s.tilesM s.tilesN s.band = j / s.bn
            ∧ i < s.m ∧ j < s.n) := by
          rintro ⟨a, b, _⟩
          apply e
          rw [← a, ← b, groupOf_tile ok.band hg]
        simp [e, this]
  · rw [count_flat (i, j) _ 0 0]
    · simp [h]
    · intro g _
      rw [count_places s ok]
      have : ¬ (tileRow g s.tilesM s.tilesN s.band = i / s.bm ∧ tileColumn g s.tilesM s.tilesN s.band = j / s.bn
            ∧ i < s.m ∧ j < s.n) := fun x => h x.2.2
      simp [this]

/-- `gemm_tile_row`, `gemm_tile_column` (`gemm/index.h`): each element of the result is in exactly one tile. -/
theorem one_tile (s : Shape) (ok : s.Ok) (i j : Nat) (hi : i < s.m) (hj : j < s.n) :
    ∃ g, g < s.tilesM * s.tilesN ∧ (i, j) ∈ places s g
      ∧ ∀ g', g' < s.tilesM * s.tilesN → (i, j) ∈ places s g' → g' = g := by
  obtain ⟨g1, g2, g3⟩ := tile_groupOf (tm := s.tilesM) (tn := s.tilesN) ok.band (tile_in_grid ok.bm hi) (tile_in_grid ok.bn hj)
  refine ⟨_, g1, ?_, ?_⟩
  · rw [← List.count_pos_iff, count_places s ok]
    simp [g2, g3, hi, hj]
  · intro g' hg' hm
    rw [← List.count_pos_iff, count_places s ok] at hm
    split at hm
    · rename_i h
      rw [← h.1, ← h.2.1, groupOf_tile ok.band hg']
    · simp at hm

/-! ## The whole product -/

/-- Memory after the stores of `writes`, in order. -/
def stored (value : Nat × Nat → β) (memory : Nat × Nat → Option β) : List (Nat × Nat) → Nat × Nat → Option β
  | [] => memory
  | w :: rest => stored value (fun p => if p.1 = w.1 ∧ p.2 = w.2 then some (value w) else memory p) rest

theorem stored_eq (value : Nat × Nat → β) (memory : Nat × Nat → Option β) (writes : List (Nat × Nat)) (p : Nat × Nat) :
    stored value memory writes p = if p ∈ writes then some (value p) else memory p := by
  induction writes generalizing memory with
  | nil => simp [stored]
  | cons w rest ih =>
    rw [stored, ih]
    by_cases h1 : p ∈ rest
    · simp [h1]
    · by_cases h2 : p = w
      · subst h2; simp
      · have : ¬ (p.1 = w.1 ∧ p.2 = w.2) := fun e => h2 (Prod.ext e.1 e.2)
        simp [h1, h2, this]

/-- What the kernel leaves in memory: each threadgroup stores, for each of its elements, what `finish` (scaling, bias,
residual, activation: `gemm/epilogue.h`) makes of the sum over tiles of terms. -/
def kernel (s : Shape) (k bk : Nat) (step : Nat × Nat → α → Nat → α) (pad : α → α) (zero : α)
    (finish : Nat × Nat → α → β) (memory : Nat × Nat → Option β) (groups : List Nat) : Nat × Nat → Option β :=
  stored (fun p => finish p (loop (step p) pad k bk zero 0 (steps k bk))) memory (flatOver (places s) groups)

/-- `gemm` (`steelworks/kernels/metal/gemm.py`) with a tiled kernel and one split: for all sizes, ragged or empty, all
tile sizes and every order of the threadgroups, each element of the result is what the naive triple loop gives, and all
other memory is as it was. The step is any function, so this holds bit for bit where it is floating point's. -/
theorem tiled_eq_naive (s : Shape) (ok : s.Ok) (k bk : Nat) (hk : 0 < bk) (step : Nat × Nat → α → Nat → α)
    (pad : α → α) (hpad : ∀ x, pad x = x) (zero : α) (finish : Nat × Nat → α → β)
    (memory : Nat × Nat → Option β) (groups : List Nat)
    (all : groups.Perm (List.range (s.tilesM * s.tilesN))) (p : Nat × Nat) :
    kernel s k bk step pad zero finish memory groups p
      = if p.1 < s.m ∧ p.2 < s.n then some (finish p (run (step p) zero 0 k)) else memory p := by
  unfold kernel
  rw [stored_eq]
  have once := written_once s ok groups all p.1 p.2
  simp only [kloop_eq_naive (step p) pad hpad zero k bk hk]
  by_cases h : p.1 < s.m ∧ p.2 < s.n
  · rw [if_pos h] at once
    have : p ∈ flatOver (places s) groups := List.count_pos_iff.1 (by rw [show p = (p.1, p.2) from rfl, once]; omega)
    rw [if_pos this, if_pos h]
  · rw [if_neg h] at once
    have : ¬ p ∈ flatOver (places s) groups := fun x => by
      have := List.count_pos_iff.2 x
      rw [show p = (p.1, p.2) from rfl] at this
      omega
    rw [if_neg this, if_neg h]

end
end Steelworks.Gemm
