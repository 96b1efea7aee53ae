------------------------------ MODULE SteelGEMM ------------------------------
(* Threads of threadgroups that run a gemm kernel: steelworks/kernels/metal/gemm, as recorded.

   The programs of the threads are no invention of this module: gemm_programs.py takes them from
   the kernel as it runs. A program is a sequence of parts; between two parts stands a barrier.
   A part has the locations of threadgroup memory that are read and written in it, those of
   tensors that are written ("puts"), and those that are read though some thread writes them
   ("gets"). The order within a part says nothing to other threads: two parts are either ordered
   by a barrier, or anything of the one may meet anything of the other.

   A race is between two threads, a result written twice is written by two (or by one), and who
   passes a barrier does so whatever the others read and write. So a crew of two says all that a
   whole threadgroup could, and the crews are all pairs of threads of one threadgroup; that all
   of them come to each barrier is checked pair by pair too. Two threadgroups have no order
   between them at all: for those, a crew is two threadgroups, each as one thread with one part.
   (Larger crews are there to see that this reasoning holds: see models_gemm.py.) *)
EXTENDS Integers, Sequences, FiniteSets, GemmPrograms

CONSTANTS Dropped,   \* barriers that are left out of every program, by number: 1 is the first of a thread
          Unfenced,  \* barriers that make threads wait, but do not order threadgroup memory
          Strays     \* threads that go past their last barrier (numbers, as in Programs)

VARIABLES crew,  \* who takes part: a sequence of threads
          at,    \* for each: the part it is in; waits at the barrier behind it if "waits"; 0: it has ended
          waits,
          since  \* the first of its parts that no barrier has ordered before what the others do now
vars == <<crew, at, waits, since>>

Init == /\ crew \in Crews
        /\ at = [i \in DOMAIN crew |-> 1]
        /\ waits = [i \in DOMAIN crew |-> FALSE]
        /\ since = [i \in DOMAIN crew |-> 1]

Members == Seats   \* all crews are of one size
Program(i) == Programs[crew[i]]
Group(i) == GroupOf[crew[i]]
Mates(i) == {j \in Members : Group(j) = Group(i)}
Last(i) == at[i] = Len(Program(i))
LeftOut(i) == \/ at[i] \in Dropped
              \/ crew[i] \in Strays /\ at[i] + 1 = Len(Program(i))

(* It is through with its part and comes to the barrier. *)
Arrive(i) == /\ at[i] # 0 /\ ~waits[i] /\ ~Last(i) /\ ~LeftOut(i)
             /\ waits' = [waits EXCEPT ![i] = TRUE]
             /\ UNCHANGED <<crew, at, since>>

(* There is no barrier: it goes on, and nothing is ordered. *)
Slip(i) == /\ at[i] # 0 /\ ~waits[i] /\ ~Last(i) /\ LeftOut(i)
           /\ at' = [at EXCEPT ![i] = @ + 1]
           /\ UNCHANGED <<crew, waits, since>>

(* All of a threadgroup that have not ended wait: they go on. *)
Open(i) == /\ \A j \in Mates(i) : waits[j] \/ at[j] = 0
           /\ waits[i] /\ i = CHOOSE j \in Mates(i) : waits[j]
           /\ at' = [j \in Members |-> IF j \in Mates(i) /\ waits[j] THEN at[j] + 1 ELSE at[j]]
           /\ waits' = [j \in Members |-> IF j \in Mates(i) THEN FALSE ELSE waits[j]]
           /\ since' = [j \in Members |->
                          IF j \in Mates(i) /\ waits[j] /\ Program(j)[at[j]].fenced /\ at[j] \notin Unfenced
                          THEN at[j] + 1 ELSE since[j]]
           /\ UNCHANGED crew

End(i) == /\ at[i] # 0 /\ ~waits[i] /\ Last(i)
          /\ at' = [at EXCEPT ![i] = 0]
          /\ UNCHANGED <<crew, waits, since>>

Next == \E i \in Seats : Arrive(i) \/ Slip(i) \/ Open(i) \/ End(i)
Spec == Init /\ [][Next]_vars

-------------------------------------------------------------------------------
(* What of its program may meet what the others do now. *)
Now(i) == IF at[i] = 0 THEN since[i]..Len(Program(i)) ELSE since[i]..at[i]
Reads(i) == UNION {Program(i)[k].reads : k \in Now(i)}
Writes(i) == UNION {Program(i)[k].writes : k \in Now(i)}
Gets(i) == UNION {Program(i)[k].gets : k \in Now(i)}
Puts(i) == UNION {Program(i)[k].puts : k \in Now(i)}
(* What it has written to tensors so far, ordered or not. *)
Written(i) == UNION {Program(i)[k].puts : k \in 1..(IF at[i] = 0 THEN Len(Program(i)) ELSE at[i])}

Pairs == {p \in Members \X Members : p[1] # p[2]}
Within(p) == Group(p[1]) = Group(p[2])

(* I6: no location of threadgroup memory is written by one thread while another one of its threadgroup
   reads or writes it; nor one of a tensor. *)
NoConflict == \A p \in Pairs : Within(p) => /\ Writes(p[1]) \cap (Reads(p[2]) \cup Writes(p[2])) = {}
                                           /\ Puts(p[1]) \cap (Gets(p[2]) \cup Puts(p[2])) = {}
(* I6: threadgroups share no mutable state: what one writes no other reads or writes. *)
NothingShared == \A p \in Pairs : ~Within(p) => Written(p[1]) \cap (Written(p[2]) \cup Gets(p[2])) = {}
(* I6: every element of the result is written once, by one thread ... *)
WrittenOnce == /\ Twice = {}
               /\ \A p \in Pairs : Within(p) => Written(p[1]) \cap Written(p[2]) = {}
(* ... and none is left out, nor anything else written: by all threads, whoever is in this crew. *)
AllPuts == UNION {Programs[p[1]][p[2]].puts : p \in UNION {{t} \X DOMAIN Programs[t] : t \in DOMAIN Programs}}
WrittenAll == (\A i \in Members : at[i] = 0) => AllPuts = Outputs
(* All threads of a threadgroup come to each barrier, and to the same one. *)
AllReach == \A p \in Pairs : Within(p) /\ waits[p[1]] => at[p[2]] # 0
SameBarrier == \A p \in Pairs :
                 Within(p) /\ waits[p[1]] /\ waits[p[2]] => Program(p[1])[at[p[1]]].line = Program(p[2])[at[p[2]]].line
===============================================================================
