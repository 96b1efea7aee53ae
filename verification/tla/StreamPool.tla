------------------------------ MODULE StreamPool ------------------------------
(* Who holds which stream: steelworks/streams/_ledger.py, step by step.

   One lock guards the pool's books. A thread returns its slot, from release() or from a
   finalizer that may run anywhere, without ever waiting for that lock: it appends to
   'returned' and tries the lock once. So whoever leaves the lock must look there.

   A thread inside the pool's code stands before one of four operations on the lock:
     "L"  it waits for the lock          (Enter:  takes it, drains 'returned', does its work)
     "U"  it is about to unlock          (Leave:  unlocks, then looks at 'returned')
     "T"  something was returned         (Settle: tries the lock; where it is held, the holder will look)
     "V"  it drained, about to unlock    (Leave:  as above)
   and pc is the pair of what it is about and this place. Outside it has no slot ("out") or
   has one ("has"); "wait" is the sleep for a hand-over, "turn" the wait for a turn on a shared
   slot, "use" a turn. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS Threads,    \* the threads
          Size,       \* the slots are 1..Size
          Mode,       \* what a thread gets when all slots are held: "wait", "share" or "error"
          Timeouts,   \* whether a wait may end by its timeout
          Interrupts, \* whether a wait may end by an exception (KeyboardInterrupt)
          Closing,    \* whether a thread may close the pool
          Forking,    \* whether a thread may fork; what follows is the child
          Bug         \* "none", or the name of a mistake; each must be found

VARIABLES pc, lock, pool, returned, turn
vars == <<pc, lock, pool, returned, turn>>

Slots == 1..Size
Nobody == 0
None == 0

Fresh == [free    |-> [i \in Slots |-> Size + 1 - i],   \* a stack; its top is the last
          holders |-> [s \in Slots |-> 0],
          slot    |-> [t \in Threads |-> None],         \* whose lease has which slot
          waiting |-> <<>>,                             \* the queue of leases
          wake    |-> [t \in Threads |-> FALSE],        \* the hand-over's signal
          closed  |-> FALSE]

Init == /\ pc = [t \in Threads |-> <<"out", "">>]
        /\ lock = Nobody
        /\ pool = Fresh
        /\ returned = <<>>
        /\ turn = [s \in Slots |-> Nobody]

At(t, what, place) == pc[t] = <<what, place>>
Goto(t, what, place) == pc' = [pc EXCEPT ![t] = <<what, place>>]
Without(queue, t) == SelectSeq(queue, LAMBDA u : u # t)
Range(f) == {f[i] : i \in DOMAIN f}

(* Every returned slot goes to the first who waits, else to the free ones. *)
RECURSIVE Drained(_, _)
Drained(p, slots) ==
  IF slots = <<>> THEN p
  ELSE LET s == Head(slots)
       IN Drained(
            IF p.holders[s] > 1 /\ Bug # "free while shared" THEN [p EXCEPT !.holders[s] = @ - 1]
            ELSE IF p.waiting # <<>>
                 THEN LET t == Head(p.waiting)
                      IN [p EXCEPT !.waiting = Tail(@), !.slot[t] = s, !.wake[t] = Bug # "lost wake-up"]
                 ELSE [p EXCEPT !.holders[s] = @ - 1, !.free = Append(@, s)],
            Tail(slots))

Granted(p, t, s) == [p EXCEPT !.slot[t] = s, !.holders[s] = @ + 1]
Least(p) == CHOOSE s \in Slots : \A o \in Slots : p.holders[s] < p.holders[o] \/ (p.holders[s] = p.holders[o] /\ s <= o)
Top(p) == p.free[Len(p.free)]

(* A thread asks for a stream. *)
Ask(t) == /\ At(t, "out", "") /\ ~pool.closed
          /\ Goto(t, "acquire", "L")
          /\ UNCHANGED <<lock, pool, returned, turn>>

(* The locked section of what t is about. *)
Section(t, p) ==
  CASE pc[t][1] = "acquire" ->
         IF p.closed THEN pool' = p /\ Goto(t, "refused", "U")
         ELSE IF p.free # <<>>
              THEN /\ pool' = [Granted(p, t, Top(p)) EXCEPT !.free = SubSeq(@, 1, Len(@) - (IF Bug = "granted twice" THEN 0 ELSE 1))]
                   /\ Goto(t, "granted", "U")
         ELSE IF Mode = "wait"  THEN pool' = [p EXCEPT !.waiting = Append(@, t)] /\ Goto(t, "queued", "U")
         ELSE IF Mode = "share" THEN pool' = Granted(p, t, Least(p)) /\ Goto(t, "granted", "U")
         ELSE pool' = p /\ Goto(t, "refused", "U")
    [] pc[t][1] = "timeout" ->   \* unless the hand-over came between the timeout and the lock
         /\ pool' = IF p.slot[t] = None /\ ~p.closed THEN [p EXCEPT !.waiting = Without(@, t)] ELSE p
         /\ Goto(t, "waited", "U")
    [] pc[t][1] = "abandon" ->
         /\ pool' = IF Bug = "stays in the queue" THEN p ELSE [p EXCEPT !.waiting = Without(@, t)]
         /\ Goto(t, "abandoned", "U")
    [] pc[t][1] = "turn" -> pool' = p /\ Goto(t, "no turn", "U")
    [] pc[t][1] = "first turn" -> pool' = p /\ Goto(t, "no first turn", "U")
    [] pc[t][1] = "close" ->
         /\ pool' = [p EXCEPT !.closed = TRUE, !.waiting = <<>>,
                              !.wake = [u \in Threads |-> @[u] \/ (u \in Range(p.waiting) /\ Bug # "close wakes nobody")]]
         /\ Goto(t, "closed", "U")

Enter(t) == /\ pc[t][2] = "L"
            /\ lock = Nobody \/ Bug = "dropped lock"
            /\ lock' = t
            /\ Section(t, Drained(pool, returned))
            /\ returned' = <<>>
            /\ UNCHANGED turn

Quiet(t) == [pool EXCEPT !.wake[t] = FALSE]   \* the signal was taken, or its lease is gone

(* Where t goes once it is through with the lock: to its place outside, or to what is left to do. *)
Back(t, s) == /\ returned' = Append(returned, s)
              /\ pool' = [pool EXCEPT !.slot[t] = None, !.wake[t] = FALSE]
              /\ Goto(t, "return", "T")
Away(t) ==
  CASE pc[t][1] = "return" -> Goto(t, "out", "") /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "closed" -> /\ IF pool.slot[t] # None THEN Goto(t, "has", "") ELSE Goto(t, "out", "")
                              /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "granted" -> /\ IF Mode = "share" THEN Goto(t, "first turn", "") ELSE Goto(t, "has", "")
                               /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "queued" -> Goto(t, "wait", "") /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "refused" -> Goto(t, "abandon", "L") /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "waited" ->
         /\ IF pool.slot[t] # None /\ Bug # "late hand-over lost"
            THEN Goto(t, "has", "") /\ pool' = Quiet(t)
            ELSE Goto(t, "abandon", "L") /\ UNCHANGED pool
         /\ UNCHANGED returned
    [] pc[t][1] = "abandoned" -> IF pool.slot[t] # None /\ Bug # "late hand-over lost" THEN Back(t, pool.slot[t])
                                 ELSE Goto(t, "out", "") /\ pool' = Quiet(t) /\ UNCHANGED returned
    [] pc[t][1] = "no turn" -> Goto(t, "has", "") /\ UNCHANGED <<pool, returned>>
    [] pc[t][1] = "no first turn" -> Back(t, pool.slot[t])   \* it only came for this block

Leave(t) == /\ pc[t][2] \in {"U", "V"}
            /\ lock' = Nobody
            /\ IF returned # <<>> /\ Bug # "nobody looks"
               THEN Goto(t, pc[t][1], "T") /\ UNCHANGED <<pool, returned>>
               ELSE Away(t)
            /\ UNCHANGED turn

Settle(t) == /\ pc[t][2] = "T"
             /\ IF lock = Nobody
                THEN /\ lock' = t
                     /\ pool' = Drained(pool, returned)
                     /\ returned' = <<>>
                     /\ Goto(t, pc[t][1], "V")
                ELSE Away(t) /\ UNCHANGED lock
             /\ UNCHANGED turn

Woken(t) == /\ At(t, "wait", "") /\ pool.wake[t]
            /\ IF pool.slot[t] # None THEN Goto(t, "has", "") ELSE Goto(t, "abandon", "L")   \* closed
            /\ pool' = Quiet(t)
            /\ UNCHANGED <<lock, returned, turn>>

Timeout(t) == /\ Timeouts
              /\ \/ At(t, "wait", "") /\ ~pool.wake[t] /\ Goto(t, "timeout", "L")
                 \/ pc[t] \in {<<"turn", "">>, <<"first turn", "">>} /\ turn[pool.slot[t]] # Nobody
                    /\ Goto(t, pc[t][1], "L")
              /\ UNCHANGED <<lock, pool, returned, turn>>

Interrupt(t) == /\ Interrupts /\ At(t, "wait", "")
                /\ Goto(t, "abandon", "L")
                /\ UNCHANGED <<lock, pool, returned, turn>>

(* release(), and the end of a thread that has a stream: the same but for who calls. *)
Release(t) == At(t, "has", "") /\ Back(t, pool.slot[t]) /\ UNCHANGED <<lock, turn>>
ThreadExit(t) == At(t, "has", "") /\ Back(t, pool.slot[t]) /\ UNCHANGED <<lock, turn>>

(* With "share", a turn on the slot is taken for each block. *)
Use(t) == /\ Mode = "share" /\ At(t, "has", "") /\ ~pool.closed
          /\ Goto(t, "turn", "") /\ UNCHANGED <<lock, pool, returned, turn>>
Share(t) == /\ pc[t] \in {<<"turn", "">>, <<"first turn", "">>}
            /\ turn[pool.slot[t]] = Nobody \/ Bug = "no turns"
            /\ turn' = [turn EXCEPT ![pool.slot[t]] = t]
            /\ Goto(t, "use", "") /\ UNCHANGED <<lock, pool, returned>>
Unshare(t) == /\ At(t, "use", "")
              /\ turn' = [turn EXCEPT ![pool.slot[t]] = Nobody]
              /\ Goto(t, "has", "") /\ UNCHANGED <<lock, pool, returned>>

Close(t) == /\ Closing /\ pc[t] \in {<<"out", "">>, <<"has", "">>} /\ ~pool.closed
            /\ Goto(t, "close", "L") /\ UNCHANGED <<lock, pool, returned, turn>>

(* Only the forking thread is in the child; it has lost its lease, and the pool is a fresh one. *)
Fork(t) == /\ Forking /\ pc[t] \in {<<"out", "">>, <<"has", "">>} /\ \A u \in Threads : pc[u] # <<"gone", "">>
           /\ pc' = [u \in Threads |-> IF u = t THEN <<"out", "">> ELSE <<"gone", "">>]
           /\ IF Bug = "fork keeps the pool" THEN UNCHANGED <<lock, pool, returned, turn>>
              ELSE /\ lock' = Nobody /\ pool' = Fresh /\ returned' = <<>>
                   /\ turn' = [s \in Slots |-> Nobody]

Next == \E t \in Threads : \/ Ask(t) \/ Enter(t) \/ Leave(t) \/ Settle(t) \/ Woken(t) \/ Timeout(t) \/ Interrupt(t)
                           \/ Release(t) \/ ThreadExit(t) \/ Use(t) \/ Share(t) \/ Unshare(t) \/ Close(t) \/ Fork(t)

-------------------------------------------------------------------------------
(* I1: a slot belongs to one thread at a time; where threads share it, one at a time is in its block. *)
Owners(s) == {t \in Threads : pool.slot[t] = s}
OneOwner == Mode # "share" => \A s \in Slots : Cardinality(Owners(s)) <= 1
OneUser == \A t, u \in Threads : At(t, "use", "") /\ At(u, "use", "") /\ t # u => pool.slot[t] # pool.slot[u]

(* Nothing is lost, nothing is there twice: a slot has as many holders as threads have it or have just
   returned it, and is free when it has none. *)
Copies(s) == Cardinality({i \in DOMAIN returned : returned[i] = s})
NoneLost == \A s \in Slots : /\ pool.holders[s] = Cardinality(Owners(s)) + Copies(s)
                             /\ Cardinality({i \in DOMAIN pool.free : pool.free[i] = s}) = IF pool.holders[s] = 0 THEN 1 ELSE 0

(* The lock is held by the thread that is inside, and by no other. *)
Locked == \A t \in Threads : pc[t][2] \in {"U", "V"} <=> lock = t
LockedByOne == Cardinality({t \in Threads : pc[t][2] \in {"U", "V"}}) <= 1

(* While a slot is free nobody waits; what was returned is taken in before all threads are out of the lock. *)
Inside == \E t \in Threads : pc[t][2] # ""
NoWaste == ~Inside => returned = <<>> /\ (pool.free = <<>> \/ pool.waiting = <<>>)

(* Whoever sleeps will be found: it is in the queue, or its signal is set. *)
Findable == \A t \in Threads : At(t, "wait", "") => t \in Range(pool.waiting) \/ pool.wake[t]
(* Only sleepers, and threads on their way to or from the sleep, are in the queue. *)
Queue == \A t \in Range(pool.waiting) :
           pc[t][1] \in {"queued", "wait", "timeout"} \/ At(t, "abandon", "L")

(* A waiter gets a stream if streams keep being returned. The lock is fair to no one in particular: strong
   fairness says that whoever keeps asking gets it at last. No symmetry here. *)
Fairness == \A t \in Threads : /\ SF_vars(Enter(t))
                               /\ WF_vars(Leave(t)) /\ WF_vars(Settle(t)) /\ WF_vars(Woken(t))
                               /\ SF_vars(Share(t)) /\ WF_vars(Unshare(t))
                               /\ WF_vars(Release(t) \/ ThreadExit(t))
Alike == Permutations(Threads)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness
Served == \A t \in Threads : At(t, "acquire", "L") ~> At(t, "has", "")
(* Every sleep ends. That the thread is soon out of the pool can't be said: one that returns a slot may be kept
   busy taking in what others return meanwhile, for as long as they do so at just the right moments. *)
NoneSleepsForEver == \A t \in Threads : At(t, "wait", "") ~> ~At(t, "wait", "")
===============================================================================
