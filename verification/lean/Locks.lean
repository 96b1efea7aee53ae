/-!
Locks. The rank of a lock is its place in the order that `verification/lean/locks.py` derives from a run of the code of
`steelworks/batching/`, `steelworks/streams/pool.py` and `steelworks/plans/`; it fails where there is none.
-/
namespace Steelworks.Locks
noncomputable section

/-- What threads hold and wait for. -/
structure System (Thread Lock : Type) where
  holds : Thread → Lock → Prop
  wants : Thread → Option Lock

/-- `t` waits for a lock that `u` holds. -/
def WaitsFor (s : System T L) (t u : T) : Prop := ∃ l, s.wants t = some l ∧ s.holds u l

/-- `t` waits for one that waits for one ... that waits for `u`. -/
inductive Chain (s : System T L) : T → T → Prop
  | one {t u : T} : WaitsFor s t u → Chain s t u
  | more {t u v : T} : WaitsFor s t u → Chain s u v → Chain s t v

/-- The order is strict: a thread waits only for locks that rank above all that it holds. -/
def Strict (rank : L → Nat) (s : System T L) : Prop :=
  ∀ t l, s.wants t = some l → ∀ h, s.holds t h → rank h < rank l

theorem chain_rank (rank : L → Nat) (s : System T L) (strict : Strict rank s) {t u : T} (c : Chain s t u) :
    ∃ l h, s.wants t = some l ∧ s.holds u h ∧ rank l ≤ rank h := by
  induction c with
  | one w =>
    obtain ⟨l, h1, h2⟩ := w
    exact ⟨l, l, h1, h2, Nat.le_refl _⟩
  | more w _ ih =>
    obtain ⟨l, h1, h2⟩ := w
    obtain ⟨l', h', h3, h4, h5⟩ := ih
    have := strict _ _ h3 _ h2
    exact ⟨l, h', h1, h4, by omega⟩

/-- The locks of `Scheduler` (`steelworks/batching/_scheduler.py`), `Ledger` (`steelworks/streams/_ledger.py`) and `Plan`
(`steelworks/plans/plan.py`), as far as they are acquired in a strict order: no thread waits for itself through others.
-/
theorem no_cycle (rank : L → Nat) (s : System T L) (strict : Strict rank s) (t : T) : ¬ Chain s t t := by
  intro c
  obtain ⟨l, h, h1, h2, h3⟩ := chain_rank rank s strict c
  have := strict t l h1 h h2
  omega

/-- A Steel kernel takes no lock once it is compiled (`launch` of `steelworks/kernels/metal/_launch.py`): a system without locks has no chain of waiting threads, so no
cycle either. -/
theorem no_locks_no_cycle (s : System T L) (none_held : ∀ t l, ¬ s.holds t l) (t u : T) : ¬ Chain s t u := by
  intro c
  cases c with
  | one w => obtain ⟨l, _, h⟩ := w; exact none_held _ _ h
  | more w _ => obtain ⟨l, _, h⟩ := w; exact none_held _ _ h

/-! ## Over a whole run -/

/-- What a thread can do: ask for a lock that ranks above all it holds, get one it asked for that nobody holds, or
release one. -/
inductive Step (rank : L → Nat) : System T L → System T L → Prop
  | ask {s s' : System T L} (t : T) (l : L) (above : ∀ h, s.holds t h → rank h < rank l) (idle : s.wants t = none)
      (holds : s'.holds = s.holds) (asks : s'.wants t = some l) (others : ∀ u, u ≠ t → s'.wants u = s.wants u) :
      Step rank s s'
  | get {s s' : System T L} (t : T) (l : L) (asked : s.wants t = some l) (free : ∀ u, ¬ s.holds u l)
      (got : ∀ u k, s'.holds u k ↔ s.holds u k ∨ (u = t ∧ k = l)) (done : s'.wants t = none)
      (others : ∀ u, u ≠ t → s'.wants u = s.wants u) : Step rank s s'
  | release {s s' : System T L} (t : T) (l : L) (kept : ∀ u k, s'.holds u k ↔ s.holds u k ∧ ¬ (u = t ∧ k = l))
      (wants : s'.wants = s.wants) : Step rank s s'

/-- What can be reached from a start where nothing is held or wanted. -/
inductive Reachable (rank : L → Nat) : System T L → Prop
  | start {s : System T L} : (∀ t l, ¬ s.holds t l) → (∀ t, s.wants t = none) → Reachable rank s
  | step {s s' : System T L} : Reachable rank s → Step rank s s' → Reachable rank s'

theorem reachable_strict (rank : L → Nat) (s : System T L) (r : Reachable rank s) : Strict rank s := by
  induction r with
  | start _ h2 =>
    intro t l h
    rw [h2] at h
    simp at h
  | step _ st ih =>
    intro t l hw h hh
    cases st with
    | ask t' l' above idle holds asks others =>
      by_cases e : t = t'
      · subst e
        rw [asks] at hw
        cases hw
        rw [holds] at hh
        exact above h hh
      · rw [others t e] at hw
        rw [holds] at hh
        exact ih t l hw h hh
    | get t' l' asked free got done others =>
      by_cases e : t = t'
      · subst e
        rw [done] at hw
        simp at hw
      · rw [others t e] at hw
        rcases (got t h).1 hh with hh | hh
        · exact ih t l hw h hh
        · exact absurd hh.1 e
    | release t' l' kept wants =>
      rw [wants] at hw
      exact ih t l hw h ((kept t h).1 hh).1

/-- In every run in which locks are asked for in the order of their ranks, no deadlock: never does a thread wait for
itself through others. -/
theorem never_deadlocked (rank : L → Nat) (s : System T L) (r : Reachable rank s) (t : T) : ¬ Chain s t t :=
  no_cycle rank s (reachable_strict rank s r) t

/-- And somebody can go on: if threads wait (`Ledger`, `Scheduler`), one of them waits for a lock that is free, or that a thread holds which
waits for nothing. -/
theorem somebody_goes_on (rank : L → Nat) (s : System T L) (strict : Strict rank s) (waiting : List T)
    (all : ∀ t l, s.wants t = some l → t ∈ waiting) (some_waits : ∃ t l, s.wants t = some l) :
    ∃ t l, s.wants t = some l ∧ ∀ u, s.holds u l → s.wants u = none := by
  have highest : ∀ ts : List T, (∃ t ∈ ts, ∃ l, s.wants t = some l) →
      ∃ t ∈ ts, ∃ l, s.wants t = some l ∧ ∀ u ∈ ts, ∀ k, s.wants u = some k → rank k ≤ rank l := by
    intro ts
    induction ts with
    | nil => rintro ⟨t, h, _⟩; simp at h
    | cons x rest ih =>
      rintro ⟨t, ht, l, hl⟩
      cases hx : s.wants x with
      | none =>
        have : ∃ t ∈ rest, ∃ l, s.wants t = some l := by
          rcases List.mem_cons.1 ht with e | e
          · subst e; rw [hx] at hl; simp at hl
          · exact ⟨t, e, l, hl⟩
        obtain ⟨b, hb, m, hm, best⟩ := ih this
        refine ⟨b, List.mem_cons_of_mem _ hb, m, hm, ?_⟩
        intro u hu k hk
        rcases List.mem_cons.1 hu with e | e
        · subst e; rw [hx] at hk; simp at hk
        · exact best u e k hk
      | some lx =>
        by_cases more : ∃ t ∈ rest, ∃ l, s.wants t = some l
        · obtain ⟨b, hb, m, hm, best⟩ := ih more
          by_cases hle : rank lx ≤ rank m
          · refine ⟨b, List.mem_cons_of_mem _ hb, m, hm, ?_⟩
            intro u hu k hk
            rcases List.mem_cons.1 hu with e | e
            · subst e; rw [hx] at hk; cases hk; exact hle
            · exact best u e k hk
          · refine ⟨x, List.mem_cons_self, lx, hx, ?_⟩
            intro u hu k hk
            rcases List.mem_cons.1 hu with e | e
            · subst e; rw [hx] at hk; cases hk; exact Nat.le_refl _
            · have := best u e k hk; omega
        · refine ⟨x, List.mem_cons_self, lx, hx, ?_⟩
          intro u hu k hk
          rcases List.mem_cons.1 hu with e | e
          · subst e; rw [hx] at hk; cases hk; exact Nat.le_refl _
          · exact absurd ⟨u, e, k, hk⟩ more
  obtain ⟨t, l, h⟩ := some_waits
  obtain ⟨b, _, m, hm, best⟩ := highest waiting ⟨t, all t l h, l, h⟩
  refine ⟨b, m, hm, ?_⟩
  intro u hu
  cases hw : s.wants u with
  | none => rfl
  | some k =>
    have h1 := strict u k hw m hu
    have h2 := best u (all u k hw) k hw
    omega

end
end Steelworks.Locks
