/-!
What the cases of `verification/lean/vectors.py` are stated with: inputs that are easy to write, and answers that are
easy to compare.
-/
namespace Steelworks.Vectors
noncomputable section

/-! ## Gemm -/

open Gemm

def left (i t : Nat) : Int := Int.ofNat ((i * 7 + t * 3 + 1) % 9) - 4
def right (t j : Nat) : Int := Int.ofNat ((t * 5 + j * 2 + 3) % 7) - 3
def step (p : Nat × Nat) (sum : Int) (t : Nat) : Int := sum + left p.1 t * right t p.2
def places (s : Shape) : List (Nat × Nat) := flatOver (Gemm.places s) (List.range (s.tilesM * s.tilesN))
def tiled (s : Shape) (k bk : Nat) (group : Nat) : List Int :=
  (Gemm.places s group).map fun p => loop (step p) (fun x => x + 0 * 0) k bk 0 0 (steps k bk)

/-! ## SplitK -/

def term (p : Nat × Nat) (t : Nat) : Int := left p.1 t * right t p.2
def split (m n k splitK : Nat) : List Int :=
  (List.range (m * n)).map fun i =>
    SplitK.combine (· + ·) 0 (term (i / n, i % n)) k splitK (SplitK.splits k splitK)
def partials (m n k splitK s : Nat) : List Int :=
  (List.range (m * n)).map fun i => SplitK.partialSum (· + ·) 0 (term (i / n, i % n)) k splitK s
def naive (m n k : Nat) : List Int :=
  (List.range (m * n)).map fun i => SplitK.sum (· + ·) (term (i / n, i % n)) 0 0 k

/-! ## Softmax -/

/-- Fractions in lowest terms: those of the library do not let the kernel compute with them. -/
abbrev Fraction := Int × Nat
def fraction (a : Int) (b : Nat) : Fraction :=
  let g := Nat.gcd a.natAbs b
  (match a with
    | .ofNat n => .ofNat (n / g)
    | .negSucc n => -.ofNat ((n + 1) / g), b / g)
def fractions : Softmax.Arithmetic Int Fraction where
  zero := (0, 1)
  one := (1, 1)
  add a b := fraction (a.1 * b.2 + b.1 * a.2) (a.2 * b.2)
  mul a b := fraction (a.1 * b.1) (a.2 * b.2)
  div a b := fraction (a.1 * b.2) (a.2 * b.1.toNat)
  le _ _ := True
  positive a := 0 < a.1
  exp a b := if b ≤ a then ((2 ^ (a - b).toNat : Nat), 1) else (1, 2 ^ (b - a).toNat)
  highest a b := if a < b then b else a
  lowest := -64
def keys (scores : List (Option Int)) (values : List Fraction) : List (Softmax.Key Int Fraction) := scores.zip values
def chunks (size : Nat) : Nat → List β → List (List β)
  | 0, _ => []
  | n + 1, l => l.take size :: chunks size n (l.drop size)
def softmax (size : Nat) (scores : List (Option Int)) : List Fraction :=
  let row := keys scores (scores.map fun _ => (1, 1))
  let seen := Softmax.online fractions (Softmax.nothing fractions) (chunks size row.length row)
  scores.map fun x => fractions.div (Softmax.weight fractions seen.1 x) seen.2
def attention (size : Nat) (scores : List (Option Int)) (values : List Fraction) : Fraction :=
  let row := keys scores values
  Softmax.attentionOnline fractions (chunks size row.length row)

/-! ## Batch -/

def request (rows : List (List Nat)) : Batch.Request Nat := ⟨(rows.headD []).length, rows⟩
def masked (row : List (Option Nat)) : List Nat := row.map fun x => x.elim 0 (· + 1)
def merged (requests : List (List (List Nat))) (length rows : Nat) : List (List Nat) :=
  (Batch.merge (requests.map request) length rows).map masked
def sumsBefore (sum : Nat) : List (Option Nat) → List Nat
  | [] => []
  | x :: rest => (sum + x.elim 0 id) :: sumsBefore (sum + x.elim 0 id) rest
def answered (requests : List (List (List Nat))) (length rows : Nat) : List (List (List Nat)) :=
  Batch.cut ((Batch.merge (requests.map request) length rows).map (sumsBefore 0)) (requests.map request)

/-! ## Paths -/

open Paths in
def path : Nat → Path
  | 0 => .steel
  | 1 => .graph
  | _ => .vendor
open Paths in
def named : Nat → Option Path
  | 3 => none
  | n => some (path n)
open Paths in
def bit (bits : Nat) : Path → Bool
  | .steel => bits % 2 = 1
  | .graph => bits / 2 % 2 = 1
  | .vendor => bits / 4 % 2 = 1
open Paths in
def device : Nat → Device
  | 0 => .cpu
  | 1 => .cuda
  | _ => .mps
open Paths in
def time (steel graph vendor : Nat) : Path → Option Nat
  | .steel => if steel = 0 then none else some steel
  | .graph => if graph = 0 then none else some graph
  | .vendor => if vendor = 0 then none else some vendor
open Paths in
def input (d refused registered able : Nat) (simulate : Bool) (op family all alias : Nat) (streams : Bool)
    (steel graph vendor : Nat) (defaults : List (Nat × Bool)) : Input :=
  ⟨device d, bit refused, bit registered, bit able, simulate, named op, named family, named all, named alias,
    streams, time steel graph vendor, defaults.map fun r => (path r.1, r.2)⟩
open Paths in
def ruleCode : Rule → Nat
  | .forced => 0
  | .only => 1
  | .simulated => 2
  | .hazard => 3
  | .profile => 4
  | .default => 5
open Paths in
def pathCode : Path → Nat
  | .steel => 0
  | .graph => 1
  | .vendor => 2
open Paths in
def outcome (i : Input) : Nat :=
  match choose i with
  | none => 99
  | some (p, r) => pathCode p * 10 + ruleCode r

/-! ## End -/

end
end Steelworks.Vectors
