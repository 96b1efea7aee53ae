/-!
The choice of a path: `decide`, `_unforced` and `_refusal` of `steelworks/paths/_choose.py`, and `State.forced_for` of
`steelworks/paths/_state.py`.
-/
namespace Steelworks.Paths
noncomputable section

inductive Path where
  | steel
  | graph
  | vendor
  deriving DecidableEq

inductive Rule where
  | forced
  | only
  | simulated
  | hazard
  | profile
  | default
  deriving DecidableEq

/-- `PATHS` of `paths/_signature.py`: their order. -/
def paths : List Path := [.steel, .graph, .vendor]

inductive Device where
  | cpu
  | cuda
  | mps
  deriving DecidableEq

/-- All that is at hand when a path is chosen for one signature. -/
structure Input where
  device : Device
  /-- `operation.no_path` has a reason against a path on this device. -/
  refused : Path → Bool
  /-- There is an implementation for this device, or for any. -/
  registered : Path → Bool
  /-- Its `possible` has no reason against the signature. -/
  able : Path → Bool
  /-- Inside `paths.simulate_metal()`. -/
  simulate : Bool
  /-- Forced for the operation, for its family, for all, and by an alias. -/
  forcedOp : Option Path
  forcedFamily : Option Path
  forcedAll : Option Path
  alias : Option Path
  /-- Several streams are active. -/
  streams : Bool
  /-- Measured on this machine, in some unit of time. -/
  time : Path → Option Nat
  /-- The table of defaults: each row's path, and whether the row applies to the signature. -/
  defaults : List (Path × Bool)

/-- `_refusal` has nothing against the path. -/
def possible (i : Input) (p : Path) : Bool :=
  !i.refused p && i.registered p && !(decide (i.device = .cpu) && decide (p = .steel) && !i.simulate) && i.able p

/-- `possible` of `decide`, in the order of `PATHS`. -/
def candidates (i : Input) : List Path := paths.filter (possible i)

/-- `State.forced_for`: the most particular first. -/
def forced (i : Input) : Option Path :=
  match i.forcedOp with
  | some p => some p
  | none => match i.forcedFamily with
    | some p => some p
    | none => match i.forcedAll with
      | some p => some p
      | none => if i.device = .mps ∨ i.simulate = true then i.alias else none

/-- `busy` of `choose`: hazards are MPS's. -/
def busy (i : Input) : Bool := decide (i.device = .mps) && i.streams

/-- Whether CPU tensors stand for an Apple GPU's. -/
def simulated (i : Input) : Bool := i.simulate && decide (i.device = .cpu)

/-- The fastest of some paths that are all measured; of equals, the first. -/
def fastest (time : Path → Option Nat) : List Path → Option (Path × Nat)
  | [] => none
  | p :: rest =>
    match time p, fastest time rest with
    | some t, some (q, u) => if u < t then some (q, u) else some (p, t)
    | some t, none => some (p, t)
    | none, other => other

/-- The first row of the defaults that applies and whose path is possible. -/
def firstDefault (possible : Path → Bool) : List (Path × Bool) → Option Path
  | [] => none
  | (p, applies) :: rest => if possible p && applies then some p else firstDefault possible rest

def allTimed (time : Path → Option Nat) : List Path → Bool
  | [] => true
  | p :: rest => (time p).isSome && allTimed time rest

/-- The last of the rules. -/
def byTable (possible : Path → Bool) (defaults : List (Path × Bool)) (first : Path) : Path × Rule :=
  match firstDefault possible defaults with
  | some p => (p, .default)
  | none => if possible .vendor then (.vendor, .default) else (first, .default)

/-- `_unforced`; `first` and `others` are the paths that are possible. -/
def unforced (possible : Path → Bool) (simulated busy : Bool) (time : Path → Option Nat)
    (defaults : List (Path × Bool)) (first : Path) (others : List Path) : Path × Rule :=
  if others = [] then (first, .only)
  else if simulated && possible .steel then (.steel, .simulated)
  else if busy && possible .steel then (.steel, .hazard)
  else if allTimed time (first :: others) then
    match fastest time (first :: others) with
    | some (p, _) => (p, .profile)
    | none => byTable possible defaults first
  else byTable possible defaults first

/-- `decide`; none is `InvalidInputError`. -/
def choose (i : Input) : Option (Path × Rule) :=
  match candidates i with
  | [] => none
  | first :: others =>
    match forced i with
    | some p =>
      if possible i p then some (p, .forced)
      else some (unforced (possible i) (simulated i) (busy i) i.time i.defaults first others)
    | none => some (unforced (possible i) (simulated i) (busy i) i.time i.defaults first others)

theorem mem_candidates (i : Input) (p : Path) : p ∈ candidates i ↔ possible i p = true := by
  unfold candidates
  rw [List.mem_filter]
  constructor
  · exact fun h => h.2
  · exact fun h => ⟨by cases p <;> simp [paths], h⟩

theorem fastest_mem (time : Path → Option Nat) (l : List Path) (p : Path) (t : Nat)
    (h : fastest time l = some (p, t)) : p ∈ l ∧ time p = some t := by
  induction l with
  | nil => simp [fastest] at h
  | cons q rest ih =>
    rw [fastest] at h
    split at h
    · rename_i t' q' u' h1 h2
      split at h
      · obtain ⟨a, b⟩ := ih (by rw [h2]; exact h)
        exact ⟨List.mem_cons_of_mem _ a, b⟩
      · cases h
        exact ⟨List.mem_cons_self, h1⟩
    · rename_i t' h1 h2
      cases h
      exact ⟨List.mem_cons_self, h1⟩
    · obtain ⟨a, b⟩ := ih h
      exact ⟨List.mem_cons_of_mem _ a, b⟩

theorem firstDefault_possible (possible : Path → Bool) (rows : List (Path × Bool)) (p : Path)
    (h : firstDefault possible rows = some p) : possible p = true := by
  induction rows with
  | nil => simp [firstDefault] at h
  | cons r rest ih =>
    obtain ⟨q, applies⟩ := r
    rw [firstDefault] at h
    split at h
    · rename_i hp
      cases h
      simp only [Bool.and_eq_true] at hp
      exact hp.1
    · exact ih h

theorem byTable_possible (possible : Path → Bool) (defaults : List (Path × Bool)) (first : Path)
    (h : possible first = true) : possible (byTable possible defaults first).1 = true := by
  unfold byTable
  split
  · rename_i p hp
    exact firstDefault_possible _ _ _ hp
  · split
    · assumption
    · exact h

theorem unforced_possible (possible : Path → Bool) (s b : Bool) (time : Path → Option Nat)
    (defaults : List (Path × Bool)) (first : Path) (others : List Path)
    (h : ∀ p ∈ first :: others, possible p = true) :
    possible (unforced possible s b time defaults first others).1 = true := by
  have hf := h first List.mem_cons_self
  unfold unforced
  split
  · exact hf
  · split
    · rename_i hs
      simp only [Bool.and_eq_true] at hs
      exact hs.2
    · split
      · rename_i hb
        simp only [Bool.and_eq_true] at hb
        exact hb.2
      · split
        · split
          · rename_i p t hp
            exact h p (fastest_mem _ _ _ _ hp).1
          · exact byTable_possible _ _ _ hf
        · exact byTable_possible _ _ _ hf

/-- `decide` (`steelworks/paths/_choose.py`): a path that is not possible is never chosen, whatever is forced, measured
or in the table. -/
theorem never_impossible (i : Input) (p : Path) (r : Rule) (h : choose i = some (p, r)) : possible i p = true := by
  unfold choose at h
  split at h
  · simp at h
  · rename_i first others hc
    have all : ∀ q ∈ first :: others, possible i q = true := fun q hq => (mem_candidates i q).1 (by rw [hc]; exact hq)
    have hu := unforced_possible (possible i) (simulated i) (busy i) i.time i.defaults first others all
    split at h
    · split at h
      · rename_i hp
        simp only [Option.some.injEq, Prod.mk.injEq] at h
        rw [← h.1]
        exact hp
      · simp only [Option.some.injEq] at h
        rw [h] at hu
        exact hu
    · simp only [Option.some.injEq] at h
      rw [h] at hu
      exact hu

/-- `decide` (`steelworks/paths/_choose.py`): it raises `InvalidInputError` exactly where no path is possible. -/
theorem none_iff (i : Input) : choose i = none ↔ ∀ p, possible i p = false := by
  unfold choose
  split
  · rename_i hc
    simp only [true_iff]
    intro p
    cases hp : possible i p with
    | false => rfl
    | true =>
      have := (mem_candidates i p).2 hp
      rw [hc] at this
      simp at this
  · rename_i first others hc
    have hf : possible i first = true := (mem_candidates i first).1 (by rw [hc]; exact List.mem_cons_self)
    constructor
    · intro h
      split at h
      · split at h <;> simp at h
      · simp at h
    · intro h
      rw [h first] at hf
      simp at hf

/-- `decide` (`steelworks/paths/_choose.py`) with `State.forced_for` (`paths/_state.py`): what is forced and possible is
chosen. -/
theorem forced_wins (i : Input) (p : Path) (hf : forced i = some p) (hp : possible i p = true) :
    choose i = some (p, .forced) := by
  unfold choose
  split
  · rename_i hc
    have := (mem_candidates i p).2 hp
    rw [hc] at this
    simp at this
  · rw [hf]
    simp [hp]

/-- `_unforced` (`steelworks/paths/_choose.py`): with several MPS streams active (`several_streams`), and nothing forced
that is possible, Steel's path is taken where it is possible: PyTorch's own is then unsafe. -/
theorem hazard_takes_steel (i : Input) (hb : busy i = true) (hs : possible i .steel = true)
    (hf : ∀ p, forced i = some p → possible i p = false) : ∃ r, choose i = some (.steel, r) := by
  have key : ∀ first others, candidates i = first :: others →
      ∃ r, unforced (possible i) (simulated i) (busy i) i.time i.defaults first others = (.steel, r) := by
    intro first others hc
    unfold unforced
    split
    · rename_i ho
      have := (mem_candidates i .steel).2 hs
      rw [hc, ho] at this
      simp at this
      exact ⟨_, by rw [this]⟩
    · split
      · exact ⟨_, rfl⟩
      · rw [hb, hs]
        exact ⟨_, rfl⟩
  unfold choose
  split
  · rename_i hc
    have := (mem_candidates i .steel).2 hs
    rw [hc] at this
    simp at this
  · rename_i first others hc
    obtain ⟨r, hr⟩ := key first others hc
    split
    · rename_i p hp
      rw [hf p hp, hr]
      exact ⟨r, rfl⟩
    · rw [hr]
      exact ⟨r, rfl⟩

/-- `_refusal` (`steelworks/paths/_choose.py`): on the CPU, outside `simulate_metal()`, Steel's path is never taken: Metal kernels are not simulated unasked. -/
theorem never_simulated_unasked (i : Input) (r : Rule) (hd : i.device = .cpu) (hs : i.simulate = false) :
    choose i ≠ some (.steel, r) := by
  intro h
  have := never_impossible i _ _ h
  simp [possible, hd, hs] at this

theorem fastest_least (time : Path → Option Nat) (l : List Path) (p : Path) (t : Nat)
    (h : fastest time l = some (p, t)) : ∀ q ∈ l, ∀ u, time q = some u → t ≤ u := by
  induction l generalizing p t with
  | nil => simp
  | cons x rest ih =>
    intro q hq u hu
    rw [fastest] at h
    split at h
    · rename_i t' q' u' h1 h2
      have hrest := ih q' u' h2
      split at h
      · rename_i hlt
        cases h
        rcases List.mem_cons.1 hq with e | e
        · subst e; rw [h1] at hu; cases hu; omega
        · exact hrest q e u hu
      · rename_i hlt
        cases h
        rcases List.mem_cons.1 hq with e | e
        · subst e; rw [h1] at hu; cases hu; omega
        · have := hrest q e u hu; omega
    · rename_i t' h1 h2
      cases h
      rcases List.mem_cons.1 hq with e | e
      · subst e; rw [h1] at hu; cases hu; omega
      · exfalso
        clear ih hq
        induction rest with
        | nil => simp at e
        | cons y ys ihy =>
          rw [fastest] at h2
          rcases List.mem_cons.1 e with e' | e'
          · subst e'
            rw [hu] at h2
            split at h2 <;> simp_all
            split at h2 <;> simp at h2
          · split at h2
            · split at h2 <;> simp at h2
            · simp at h2
            · exact ihy h2 e'
    · rename_i h1
      rcases List.mem_cons.1 hq with e | e
      · subst e; rw [h1] at hu; simp at hu
      · exact ih p t h q e u hu

/-- `_unforced` (`steelworks/paths/_choose.py`): where the profile decides, no possible path was measured to be faster. -/
theorem profile_is_fastest (i : Input) (p : Path) (h : choose i = some (p, .profile)) :
    ∃ t, i.time p = some t ∧ ∀ q u, possible i q = true → i.time q = some u → t ≤ u := by
  have table : ∀ first q, byTable (possible i) i.defaults first ≠ (q, Rule.profile) := by
    intro first q e
    unfold byTable at e
    split at e
    · simp at e
    · split at e <;> simp at e
  have key : ∀ first others, candidates i = first :: others →
      unforced (possible i) (simulated i) (busy i) i.time i.defaults first others = (p, .profile) →
      ∃ t, i.time p = some t ∧ ∀ q u, possible i q = true → i.time q = some u → t ≤ u := by
    intro first others hc e
    unfold unforced at e
    split at e
    · simp at e
    · split at e
      · simp at e
      · split at e
        · simp at e
        · split at e
          · split at e
            · rename_i q t hq
              simp only [Prod.mk.injEq, and_true] at e
              subst e
              refine ⟨t, (fastest_mem _ _ _ _ hq).2, ?_⟩
              intro q' u hp hu
              exact fastest_least _ _ _ _ hq q' (by rw [← hc]; exact (mem_candidates i q').2 hp) u hu
            · exact absurd e (table _ _)
          · exact absurd e (table _ _)
  unfold choose at h
  split at h
  · simp at h
  · rename_i first others hc
    split at h
    · split at h
      · simp at h
      · simp only [Option.some.injEq] at h
        exact key first others hc h
    · simp only [Option.some.injEq] at h
      exact key first others hc h

/-- The rows of the defaults that can have a say. -/
def rowsThatCount (possible : Path → Bool) (rows : List (Path × Bool)) : List Path :=
  match rows with
  | [] => []
  | (p, applies) :: rest => if possible p && applies then p :: rowsThatCount possible rest else rowsThatCount possible rest

theorem firstDefault_eq (possible : Path → Bool) (rows : List (Path × Bool)) :
    firstDefault possible rows = (rowsThatCount possible rows).head? := by
  induction rows with
  | nil => rfl
  | cons r rest ih =>
    obtain ⟨p, applies⟩ := r
    rw [firstDefault, rowsThatCount]
    split
    · rfl
    · exact ih

theorem allTimed_congr (t u : Path → Option Nat) (l : List Path) (h : ∀ p ∈ l, t p = u p) :
    allTimed t l = allTimed u l := by
  induction l with
  | nil => rfl
  | cons p rest ih =>
    rw [allTimed, allTimed, h p List.mem_cons_self, ih fun q hq => h q (List.mem_cons_of_mem _ hq)]

theorem fastest_congr (t u : Path → Option Nat) (l : List Path) (h : ∀ p ∈ l, t p = u p) :
    fastest t l = fastest u l := by
  induction l with
  | nil => rfl
  | cons p rest ih =>
    rw [fastest, fastest, h p List.mem_cons_self, ih fun q hq => h q (List.mem_cons_of_mem _ hq)]

/-- `decide` (`steelworks/paths/_choose.py`) depends on nothing but: which paths are possible; what is forced; whether a hazard is present; whether the
CPU stands for an Apple GPU; the times of paths that are possible; the rows of the table that apply and are possible.
Two calls that agree in these take the same path by the same rule. -/
theorem depends_only (i j : Input) (hp : ∀ p, possible i p = possible j p) (hf : forced i = forced j)
    (hb : busy i = busy j) (hs : simulated i = simulated j)
    (ht : ∀ p, possible i p = true → i.time p = j.time p)
    (hd : rowsThatCount (possible i) i.defaults = rowsThatCount (possible j) j.defaults) :
    choose i = choose j := by
  have hpf : possible i = possible j := funext hp
  have hc : candidates i = candidates j := by simp only [candidates, hpf]
  have table : ∀ first, byTable (possible i) i.defaults first = byTable (possible j) j.defaults first := by
    intro first
    have hd' := hd
    rw [hpf] at hd'
    simp only [byTable, firstDefault_eq, hpf, hd']
  have key : ∀ first others, candidates i = first :: others →
      unforced (possible i) (simulated i) (busy i) i.time i.defaults first others
        = unforced (possible j) (simulated j) (busy j) j.time j.defaults first others := by
    intro first others e
    have times : ∀ p ∈ first :: others, i.time p = j.time p := by
      intro p hm
      rw [← e] at hm
      exact ht p ((mem_candidates i p).1 hm)
    unfold unforced
    rw [allTimed_congr _ _ _ times, fastest_congr _ _ _ times, hs, hb, table, hpf]
  unfold choose
  rw [← hc, ← hf]
  split
  · rfl
  · rename_i first others e
    rw [key first others e, hpf]

end
end Steelworks.Paths
