------------------------------ MODULE BatchQueue ------------------------------
(* The batch queue: steelworks/batching/_scheduler.py, _worker.py and _express.py, by the steps of the seam.

   All that threads share is behind one lock, so a step's locked section is one action here. A thread may be
   stopped before each step, at the model (the runner, "run"), and between the end of requests and telling those
   who asked ("tell"). One request is one row; a worker has one batch in hand.

   Requests of Callers come by queue(x): their thread waits for the answer, may give up (Withdraw), and may run
   the request itself (Direct). The others come by submit(): they have a future, which may be cancelled.
   A worker's runner is driven by its own thread, or by a caller that was lent it (lent). *)
EXTENDS Integers, Sequences, FiniteSets

CONSTANTS Requests, Callers, Workers,
          Clocked,     \* the requests that may pass their deadline
          MaxBatch, MaxPending,
          Overflow,    \* "block", "reject" or "drop"
          Features,    \* which of the rarer steps may be taken
          Bug          \* "none", or the name of a mistake; each must be found

VARIABLES st,     \* of each request
          told,   \* how many times its end was told to the one who asked
          ends,   \* how many times it ended
          line,   \* accepted requests that have not ended, in order of arrival
          solo,   \* those that were in hand when a worker died: each runs alone
          pc, hand, now, rest,   \* of each worker: its place; its batch; what of it runs; halves still to run
          tell,   \* of each worker: requests that ended and whose askers don't know yet
          held,   \* of each worker: a batch taken while another was left in hand by a caller
          idle, woken,           \* who sleeps, in order; who was taken off that list and woken
          state, lent, borrowing, draining
vars == <<st, told, ends, line, solo, pc, hand, now, rest, tell, held, idle, woken, state, lent, borrowing, draining>>
requests == <<st, told, ends, line, solo>>
worker == <<pc, hand, now, rest, tell, held>>
sleep == <<idle, woken>>
others == <<state, lent, borrowing, draining>>

Nobody == "nobody"
Ends == {"completed", "failed", "cancelled", "expired", "dropped"}
Alive == {"parked", "pending", "running"}
Some(step) == step \in Features
In(s, states) == SelectSeq(s, LAMBDA r : st[r] \in states)
Pending == In(line, {"pending"})
Parked == In(line, {"parked"})
Range(s) == {s[i] : i \in DOMAIN s}
Min(a, b) == IF a < b THEN a ELSE b
First(s, n) == SubSeq(s, 1, Min(n, Len(s)))
Count(S) == Cardinality(S)
Running == Count({r \in Requests : st[r] = "running"})

Init == /\ st = [r \in Requests |-> "new"] /\ told = [r \in Requests |-> 0] /\ ends = [r \in Requests |-> 0]
        /\ line = <<>> /\ solo = {}
        /\ pc = [w \in Workers |-> "take"] /\ hand = [w \in Workers |-> <<>>] /\ now = [w \in Workers |-> <<>>]
        /\ rest = [w \in Workers |-> <<>>] /\ tell = [w \in Workers |-> <<>>] /\ held = [w \in Workers |-> <<>>]
        /\ idle = <<>> /\ woken = {}
        /\ state = "open" /\ lent = Nobody /\ borrowing = FALSE /\ draining = "no"

(* End the requests of s that have not ended, as 'how'. Parked ones move up where one that waited has gone. *)
Ending(s, how) == {r \in s : st[r] \in Alive \/ (Bug = "ends twice" /\ st[r] \in Ends)}
Admit(f, l) == LET waits == Cardinality({i \in DOMAIN l : f[l[i]] = "pending"})
                   room == IF MaxPending > waits THEN MaxPending - waits ELSE 0
                   up == Range(First(SelectSeq(l, LAMBDA r : f[r] = "parked"), room))
               IN [r \in Requests |-> IF r \in up THEN "pending" ELSE f[r]]
After(s, how) == [r \in Requests |-> IF r \in Ending(s, how) THEN how ELSE st[r]]
Gone(s, how) == SelectSeq(line, LAMBDA r : r \notin Ending(s, how))
End(s, how) == LET f == After(s, how)
                   l == Gone(s, how)
                   left == \E r \in Ending(s, how) : st[r] = "pending"
               IN /\ line' = l
                  /\ st' = IF left THEN Admit(f, l) ELSE f
                  /\ ends' = [r \in Requests |-> IF r \in Ending(s, how) THEN ends[r] + 1 ELSE ends[r]]
Told(s) == told' = [r \in Requests |-> IF r \in s THEN told[r] + 1 ELSE told[r]]
Wakes == IF idle # <<>> THEN idle' = Tail(idle) /\ woken' = woken \union (IF Bug = "lost wake-up" THEN {} ELSE {Head(idle)})
         ELSE UNCHANGED sleep

-------------------------------------------------------------------------------
(* Callers *)
Free == \A r \in Requests : st[r] # "direct"
MayDirect(r) == /\ Some("direct") /\ r \in Callers /\ state = "open" /\ Pending = <<>>
                /\ Free \/ Bug = "shared run"

Accept(r, as) == st' = [st EXCEPT ![r] = as] /\ line' = Append(line, r)
Submit(r) ==
  /\ st[r] = "new" /\ ~MayDirect(r)
  /\ IF state # "open"
     THEN st' = [st EXCEPT ![r] = "refused"] /\ UNCHANGED <<told, ends, line, sleep>>
     ELSE IF Len(Pending) < MaxPending \/ Bug = "no bound"
     THEN Accept(r, "pending") /\ UNCHANGED <<told, ends>> /\ Wakes
     ELSE IF Overflow = "block"
     THEN Accept(r, "parked") /\ UNCHANGED <<told, ends, sleep>>
     ELSE IF Overflow = "reject"
     THEN st' = [st EXCEPT ![r] = "refused"] /\ UNCHANGED <<told, ends, line, sleep>>
     ELSE LET old == Head(Pending)
          IN /\ st' = [st EXCEPT ![r] = "pending", ![old] = "dropped"]
             /\ line' = Append(SelectSeq(line, LAMBDA q : q # old), r)
             /\ ends' = [ends EXCEPT ![old] = @ + 1]
             /\ Told({old})
             /\ Wakes
  /\ UNCHANGED <<solo, worker, others>>

Direct(r) == /\ st[r] = "new" /\ MayDirect(r)
             /\ st' = [st EXCEPT ![r] = "direct"]
             /\ UNCHANGED <<told, ends, line, solo, worker, sleep, others>>
DirectEnds(r, how) == /\ st' = [st EXCEPT ![r] = how]
                      /\ ends' = [ends EXCEPT ![r] = @ + 1] /\ Told({r})
                      /\ UNCHANGED <<line, solo, worker, sleep, others>>
DirectOk(r) == st[r] = "direct" /\ DirectEnds(r, "completed")
DirectFails(r) == st[r] = "direct" /\ DirectEnds(r, "failed")

Cancel(r) == /\ Some("cancel") /\ r \notin Callers /\ st[r] \in {"parked", "pending"}
             /\ End({r}, "cancelled") /\ Told({r})
             /\ UNCHANGED <<solo, worker, sleep, others>>
Withdraw(r) == /\ Some("withdraw") /\ r \in Callers /\ st[r] \in Alive
               /\ End({r}, "cancelled") /\ Told({})   \* the one who asked is the one who gives up
               /\ UNCHANGED <<solo, worker, sleep, others>>
Expire(r) == /\ Some("expire") /\ r \in Clocked /\ st[r] \in Alive
             /\ End({r}, "expired") /\ Told({r})
             /\ UNCHANGED <<solo, worker, sleep, others>>

InHand(r) == \E w \in Workers : r \in Range(hand[w]) \union Range(held[w]) \union Range(tell[w])
(* Whoever asked has seen the end; the name is used for another request. *)
Forget(r) == /\ st[r] \in Ends \union {"refused"} /\ ~InHand(r)
             /\ told[r] > 0 \/ st[r] = "refused" \/ (r \in Callers /\ st[r] = "cancelled")
             /\ st' = [st EXCEPT ![r] = "new"] /\ told' = [told EXCEPT ![r] = 0] /\ ends' = [ends EXCEPT ![r] = 0]
             /\ solo' = solo \ {r}
             /\ UNCHANGED <<line, worker, sleep, others>>

-------------------------------------------------------------------------------
(* Workers, by their own threads or by the caller who was lent one *)
Set(w, p, h, n, x, t, k) == /\ pc' = [pc EXCEPT ![w] = p] /\ hand' = [hand EXCEPT ![w] = h]
                            /\ now' = [now EXCEPT ![w] = n] /\ rest' = [rest EXCEPT ![w] = x]
                            /\ tell' = [tell EXCEPT ![w] = t] /\ held' = [held EXCEPT ![w] = k]

(* The next batch: the first that waits, and others up to this worker's share; a solo one runs alone. *)
Limit == LET all == Len(Pending) + Running
             share == (all + Count(Workers) - 1) \div Count(Workers)
         IN IF Min(MaxBatch, share) > 1 THEN Min(MaxBatch, share) ELSE 1
Batch == IF Head(Pending) \in solo THEN First(Pending, 1)
         ELSE LET n == Min(Limit, Len(Pending))
                  plain == {k \in 1..n : \A i \in 1..k : Pending[i] \notin solo}
              IN First(Pending, CHOOSE k \in plain : \A j \in plain : j <= k)
Taken(b) == Admit([r \in Requests |-> IF r \in Range(b) THEN "running" ELSE st[r]], line)
Waits(f) == \E r \in Requests : f[r] = "pending"
Lead(w) == lent = w

Take(w) ==
  /\ pc[w] \in {"take", "lead"} \/ (pc[w] = "idle" /\ w \in woken)
  /\ LET loaded == hand[w] # <<>>   \* a caller left a batch in hand
     IN IF Pending # <<>>
        THEN LET b == Batch
             IN /\ st' = Taken(b)
                /\ IF loaded THEN Set(w, "run", hand[w], hand[w], <<>>, <<>>, b)
                   ELSE Set(w, "run", b, b, <<>>, <<>>, <<>>)
                /\ woken' = (woken \ {w}) \union (IF Waits(Taken(b)) /\ idle # <<>> THEN {Head(idle)} ELSE {})
                /\ idle' = IF Waits(Taken(b)) /\ idle # <<>> THEN Tail(idle) ELSE idle
                /\ UNCHANGED <<lent, borrowing>>
        ELSE /\ UNCHANGED st
             /\ woken' = woken \ {w}
             /\ IF loaded /\ ~Lead(w)
                THEN Set(w, "run", hand[w], hand[w], <<>>, <<>>, <<>>) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF Lead(w)
                THEN Set(w, "giveback", <<>>, <<>>, <<>>, <<>>, <<>>) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF state # "open" /\ ~(\E r \in Requests : st[r] \in {"pending", "parked"})
                THEN Set(w, "left", <<>>, <<>>, <<>>, <<>>, <<>>) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF borrowing /\ state = "open"
                THEN /\ Set(w, "lead", <<>>, <<>>, <<>>, <<>>, <<>>)
                     /\ lent' = w /\ borrowing' = FALSE /\ UNCHANGED idle
                ELSE /\ Set(w, "idle", <<>>, <<>>, <<>>, <<>>, <<>>)
                     /\ idle' = Append(idle, w) /\ UNCHANGED <<lent, borrowing>>
  /\ UNCHANGED <<told, ends, line, solo, state, draining>>

(* Where a worker goes after a run: to the next half whose requests still run, else its batch is over. *)
Halves(s) == LET half == Len(s) \div 2 IN <<SubSeq(s, 1, half), SubSeq(s, half + 1, Len(s))>>
RECURSIVE Next1(_, _)
Next1(f, stack) == IF stack = <<>> THEN <<>>
                   ELSE IF \E i \in DOMAIN Head(stack) : f[Head(stack)[i]] = "running" THEN stack ELSE Next1(f, Tail(stack))
GoOn(w, f, stack) ==
  LET left == Next1(f, stack)
  IN IF left # <<>>
     THEN Set(w, "run", hand[w], SelectSeq(Head(left), LAMBDA r : f[r] = "running"), Tail(left), <<>>, held[w])
     ELSE IF held[w] # <<>> /\ ~Lead(w) THEN Set(w, "run", held[w], held[w], <<>>, <<>>, <<>>)
     ELSE Set(w, IF Lead(w) THEN "giveback" ELSE "take", <<>>, <<>>, <<>>, <<>>, <<>>)

EndRun(w, s, how) ==   \* the run of s is over; if nobody is to be told, go on at once
  LET ended == SelectSeq(s, LAMBDA r : r \in Ending(Range(s), how))
  IN /\ End(Range(s), how)
     /\ IF ended = <<>> THEN GoOn(w, st, rest[w])
        ELSE Set(w, "tell", hand[w], <<>>, rest[w], ended, held[w])
     /\ UNCHANGED <<told, solo, sleep, others>>

Complete(w) == pc[w] = "run" /\ EndRun(w, now[w], "completed")

(* The model raised. One request alone has failed; of several, each half is run again. *)
Raise(w) ==
  /\ Some("raise") /\ pc[w] = "run"
  /\ IF Len(now[w]) = 1 THEN EndRun(w, now[w], "failed")
     ELSE LET live == IF now[w] = hand[w] THEN In(now[w], {"running"}) ELSE now[w]
              halves == IF Bug = "bisect loses a neighbour" THEN <<Halves(live)[1]>> ELSE Halves(live)
          IN /\ GoOn(w, st, halves \o rest[w])
             /\ UNCHANGED <<requests, sleep, others>>

Tell(w) == /\ pc[w] = "tell"
           /\ Told(IF Bug = "nobody is told" THEN {} ELSE Range(tell[w]))
           /\ GoOn(w, st, rest[w])
           /\ UNCHANGED <<st, ends, line, solo, sleep, others>>

(* The model ended the worker's thread. A request that had its second chance fails; the others wait again. *)
Replaced(w) == Set(w, "take", <<>>, <<>>, <<>>, <<>>, <<>>)
Back(w) == In(hand[w], {"running"})
Die(w) ==
  /\ Some("die") /\ pc[w] = "run" /\ ~Lead(w)
  /\ LET lost == SelectSeq(Back(w), LAMBDA r : r \in solo /\ Bug # "retries for ever")
     IN IF lost # <<>>
        THEN /\ End(Range(lost), "failed")
             /\ Set(w, "last words", hand[w], <<>>, <<>>, lost, held[w])
             /\ UNCHANGED <<told, solo, sleep, others>>
        ELSE /\ IF Back(w) # <<>> \/ held[w] # <<>> THEN Set(w, "bury", Back(w), <<>>, <<>>, <<>>, held[w]) ELSE Replaced(w)
             /\ UNCHANGED <<requests, sleep, others>>
LastWords(w) == /\ pc[w] = "last words"
                /\ Told(Range(tell[w]))
                /\ IF held[w] # <<>> THEN Set(w, "bury", <<>>, <<>>, <<>>, <<>>, held[w]) ELSE Replaced(w)
                /\ UNCHANGED <<st, ends, line, solo, sleep, others>>
Retry(w) ==
  /\ pc[w] = "bury"
  /\ LET first == held[w] # <<>>   \* not launched yet, so not to blame
         again == IF first THEN In(held[w], {"running"}) ELSE IF Bug = "death loses requests" THEN <<>> ELSE Back(w)
         f == [r \in Requests |-> IF r \in Range(again) THEN "pending" ELSE st[r]]
     IN /\ st' = f
        /\ solo' = IF first THEN solo ELSE solo \union Range(again)
        /\ IF Waits(f) THEN Wakes ELSE UNCHANGED sleep
        /\ IF first /\ hand[w] # <<>> THEN Set(w, "bury", hand[w], <<>>, <<>>, <<>>, <<>>) ELSE Replaced(w)
  /\ UNCHANGED <<told, ends, line, others>>

-------------------------------------------------------------------------------
(* A caller that leads: it borrows an idle worker's runner *)
Lend == /\ Some("lend") /\ lent = Nobody /\ ~borrowing /\ state = "open" /\ Pending = <<>>
        /\ IF idle # <<>>
           THEN LET w == idle[Len(idle)]
                IN /\ lent' = w /\ idle' = IF Bug = "lent twice" THEN idle ELSE SubSeq(idle, 1, Len(idle) - 1)
                   /\ pc' = [pc EXCEPT ![w] = "lead"]
                   /\ UNCHANGED borrowing
           ELSE borrowing' = TRUE /\ UNCHANGED <<lent, idle, pc>>
        /\ UNCHANGED <<requests, hand, now, rest, tell, held, woken, state, draining>>
LendTimeout == /\ borrowing /\ borrowing' = FALSE
               /\ UNCHANGED <<requests, worker, sleep, state, lent, draining>>
(* It is interrupted while its batch runs: the batch stays in hand, for the worker's own thread. *)
Interrupt(w) == /\ Some("lend") /\ Lead(w) /\ pc[w] = "run" /\ now[w] = hand[w]
                /\ Set(w, "giveback", hand[w], <<>>, <<>>, <<>>, <<>>)
                /\ UNCHANGED <<requests, sleep, others>>
GiveBack(w) == /\ pc[w] = "giveback" /\ Lead(w)
               /\ lent' = Nobody
               /\ pc' = [pc EXCEPT ![w] = "idle"]
               /\ IF (hand[w] # <<>> /\ Bug # "left in hand") \/ Pending # <<>> \/ state # "open" \/ draining # "no"
                  THEN woken' = woken \union {w} /\ UNCHANGED idle
                  ELSE idle' = Append(idle, w) /\ UNCHANGED woken
               /\ UNCHANGED <<requests, hand, now, rest, tell, held, state, borrowing, draining>>

-------------------------------------------------------------------------------
(* Life *)
AllLeft == \A w \in Workers : pc[w] = "left"
Untold == \E w \in Workers : tell[w] # <<>>
Quiet == line = <<>> /\ ~Untold /\ Free
Close(cancel) ==
  /\ state = "open"
  /\ state' = "closing"
  /\ LET waits == {r \in Requests : cancel /\ st[r] \in {"pending", "parked"}}
         f == [r \in Requests |-> IF r \in waits THEN "cancelled" ELSE st[r]]
     IN /\ st' = f /\ line' = SelectSeq(line, LAMBDA r : r \notin waits)
        /\ ends' = [r \in Requests |-> IF r \in waits THEN ends[r] + 1 ELSE ends[r]]
        /\ Told(waits)
  /\ idle' = <<>> /\ woken' = woken \union (IF Bug = "close wakes nobody" THEN {} ELSE Range(idle))
  /\ UNCHANGED <<solo, worker, lent, borrowing, draining>>
CloseSoftly == Some("close") /\ Close(FALSE)
CloseAtOnce == Some("close") /\ Close(TRUE)
Closed == /\ state = "closing" /\ AllLeft /\ Quiet
          /\ draining # "lane"   \* one at a time waits for the callers that run their requests
          /\ state' = "closed" /\ UNCHANGED <<requests, worker, sleep, lent, borrowing, draining>>
(* drain() waits for the queue, then for the callers that run their requests themselves. *)
Drain == /\ Some("drain") /\ draining = "no" /\ ~Quiet
         /\ draining' = IF line = <<>> /\ ~Untold THEN "lane" ELSE "queue"
         /\ UNCHANGED <<requests, worker, sleep, state, lent, borrowing>>
Drained == /\ draining # "no" /\ Quiet /\ draining' = "no"
           /\ UNCHANGED <<requests, worker, sleep, state, lent, borrowing>>

Work(w) == Take(w) \/ Complete(w) \/ Tell(w) \/ LastWords(w) \/ Retry(w) \/ GiveBack(w)
Next == \/ \E r \in Requests : \/ Submit(r) \/ Direct(r) \/ DirectOk(r) \/ DirectFails(r) \/ Cancel(r)
                               \/ Withdraw(r) \/ Expire(r) \/ Forget(r)
        \/ \E w \in Workers : \/ Take(w) \/ Complete(w) \/ Raise(w) \/ Tell(w) \/ Die(w) \/ LastWords(w) \/ Retry(w)
                              \/ Interrupt(w) \/ GiveBack(w)
        \/ Lend \/ LendTimeout \/ CloseSoftly \/ CloseAtOnce \/ Closed \/ Drain \/ Drained

-------------------------------------------------------------------------------
(* I2: a request ends at most once, and whoever asked is told once. Those that have not ended are in the line. *)
OnceEach == \A r \in Requests : ends[r] <= 1 /\ told[r] <= 1 /\ (st[r] \in Ends <=> ends[r] = 1)
InLine == /\ Range(line) = {r \in Requests : st[r] \in Alive} /\ Len(line) = Count(Range(line))
(* Nothing is lost: what runs is in exactly one worker's hands, and what has ended is told or about to be. *)
Hands(r) == {w \in Workers : r \in Range(hand[w])} \union {w \in Workers : r \in Range(held[w])}
NoneLost == \A r \in Requests : /\ st[r] = "running" => Count(Hands(r)) = 1
                                /\ st[r] \in Ends /\ told[r] = 0 => st[r] = "cancelled" \/ \E w \in Workers : r \in Range(tell[w])
(* No more than MaxPending wait; where workers die, what they had in hand comes on top of it. *)
Capacity == Count(Workers) * MaxBatch * (IF Some("lend") THEN 2 ELSE 1)
Bounded == /\ Len(Pending) + Running <= MaxPending + Capacity
           /\ ~Some("die") => Len(Pending) <= MaxPending
RoomIsUsed == Parked # <<>> => Len(Pending) >= MaxPending
(* I1: a worker's runner has one user. One that sleeps is nobody's; one that is lent is not on the list. *)
OneUser == /\ \A w \in Workers : w \in Range(idle) => pc[w] = "idle" /\ w \notin woken /\ lent # w
           /\ \A w \in Workers : pc[w] = "idle" => (w \in Range(idle)) # (w \in woken) \/ Bug = "lost wake-up"
           /\ Len(idle) = Count(Range(idle))
           /\ Count({r \in Requests : st[r] = "direct"}) <= 1
(* While requests wait, somebody is awake to take them. *)
Awake == Pending # <<>> => \E w \in Workers : w \in woken \/ pc[w] \notin {"idle", "left"}
Closing == state = "closed" => AllLeft /\ line = <<>>

(* The same as the plain life of a request, which traces of the code are followed in. *)
Plain == INSTANCE Lifecycle WITH
           open <- state = "open",
           life <- [r \in Requests |-> IF st[r] \in {"parked", "pending"} THEN "waits"
                                       ELSE IF st[r] \in {"running", "direct"} THEN "runs"
                                       ELSE IF st[r] \in Ends THEN "over" ELSE "new"]
LivesPlainly == Plain!LifeSpec

(* Every accepted request ends and is told, if the model returns or raises, and callers give back what they lead.
   A worker may die any number of times; each request is tried twice at most. No symmetry here. *)
Fairness == /\ \A w \in Workers : WF_vars(Work(w))
            /\ \A r \in Requests : WF_vars(DirectOk(r) \/ DirectFails(r))
            /\ WF_vars(LendTimeout) /\ WF_vars(Closed) /\ WF_vars(Drained)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness
EveryOneEnds == \A r \in Requests : st[r] \in Alive \union {"direct"} ~> ends[r] = 1
EveryOneIsTold == \A r \in Requests : st[r] \in Alive \union {"direct"} ~> told[r] = 1 \/ st[r] = "cancelled"
CloseEnds == state = "closing" ~> state = "closed"
===============================================================================
