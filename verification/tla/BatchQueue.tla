------------------------------ MODULE BatchQueue ------------------------------
(* The batch queue: steelworks/batching/_scheduler.py, _worker.py and _express.py, by the steps of the seam.

   All that threads share is behind one lock, so a step's locked section is one action here. A thread may be
   stopped before each step, at the model (the runner, "run"), and between the end of requests and telling those
   who asked ("tell"). A worker has up to Depth batches in flight, which the model ends in the order of launching.

   Requests of Callers come by queue(x): their thread waits for the answer, may give up (Withdraw), and may run
   the request itself (Direct). The others come by submit(): they have a future, which may be cancelled.
   A worker's runner is driven by its own thread, or by a caller that was lent it (lent). *)
EXTENDS Integers, Sequences, FiniteSets

CONSTANTS Requests, Callers, Workers,
          Clocked,     \* the requests that may pass their deadline
          Wide,        \* the requests of WideRows rows; the others have one
          WideRows,
          Urgent,      \* the requests of a higher priority
          MaxBatch,    \* the most rows in a batch; a request that has more runs alone
          MaxPending,  \* the most requests that wait
          Depth,       \* the most batches that a worker has in flight
          Overflow,    \* "block", "reject" or "drop"
          Features,    \* which of the rarer steps may be taken
          Bug          \* "none", or the name of a mistake; each must be found
(* What a caller that leads leaves behind is modelled for one batch in flight and no waiting for more requests. *)
ASSUME "lend" \in Features => Depth = 1 /\ "gather" \notin Features

VARIABLES st,     \* of each request
          told,   \* how many times its end was told to the one who asked
          ends,   \* how many times it ended
          line,   \* accepted requests that have not ended, in order of arrival
          order,  \* the same in the order in which they are taken
          aged,   \* those that waited so long that no priority overtakes them
          solo,   \* those that were in hand when a worker died: each runs alone
          pc, hand, now, rest,   \* of each worker: its place; its batch; what of it runs; halves still to run
          later,  \* of each worker: batches in flight that were launched after the one in hand, in that order
          broken, \* of each worker: batches that raised, and wait until what is in flight has ended to be run in halves
          tell,   \* of each worker: requests that ended and whose askers don't know yet
          held,   \* of each worker: a batch taken while another was left in hand by a caller
          idle, woken,           \* who sleeps, in order; who was taken off that list and woken
          need,   \* of each worker: the rows that must wait before it is woken; over 1 where it waits for more for a time
          state, lent, borrowing, draining
vars == <<st, told, ends, line, order, aged, solo, pc, hand, now, rest, later, broken, tell, held, idle, woken, need,
          state, lent, borrowing, draining>>
lines == <<line, order, aged>>
requests == <<st, told, ends, line, order, aged, solo>>
worker == <<pc, hand, now, rest, later, broken, tell, held>>
sleep == <<idle, woken, need>>
others == <<state, lent, borrowing, draining>>

Nobody == "nobody"
Ends == {"completed", "failed", "cancelled", "expired", "dropped"}
Alive == {"parked", "pending", "running"}
Some(step) == step \in Features
In(s, states) == SelectSeq(s, LAMBDA r : st[r] \in states)
Pending == In(order, {"pending"})
Parked == In(line, {"parked"})
Range(s) == {s[i] : i \in DOMAIN s}
Min(a, b) == IF a < b THEN a ELSE b
First(s, n) == SubSeq(s, 1, Min(n, Len(s)))
Count(S) == Cardinality(S)
Running == Count({r \in Requests : st[r] = "running"})
Without(s, S) == SelectSeq(s, LAMBDA r : r \notin S)
Rows(S) == Count(S) + (WideRows - 1) * Count(S \cap Wide)
RowsThat(f, how) == Rows({r \in Requests : f[r] = how})

Init == /\ st = [r \in Requests |-> "new"] /\ told = [r \in Requests |-> 0] /\ ends = [r \in Requests |-> 0]
        /\ line = <<>> /\ order = <<>> /\ aged = {} /\ solo = {}
        /\ pc = [w \in Workers |-> "take"] /\ hand = [w \in Workers |-> <<>>] /\ now = [w \in Workers |-> <<>>]
        /\ rest = [w \in Workers |-> <<>>] /\ tell = [w \in Workers |-> <<>>] /\ held = [w \in Workers |-> <<>>]
        /\ later = [w \in Workers |-> <<>>] /\ broken = [w \in Workers |-> <<>>]
        /\ idle = <<>> /\ woken = {} /\ need = [w \in Workers |-> 1]
        /\ state = "open" /\ lent = Nobody /\ borrowing = FALSE /\ draining = "no"

(* End the requests of s that have not ended, as 'how'. Parked ones move up where one that waited has gone. *)
Ending(s, how) == {r \in s : st[r] \in Alive \/ (Bug = "ends twice" /\ st[r] \in Ends)}
Admit(f, l) == LET waits == Cardinality({i \in DOMAIN l : f[l[i]] = "pending"})
                   room == IF MaxPending > waits THEN MaxPending - waits ELSE 0
                   up == Range(First(SelectSeq(l, LAMBDA r : f[r] = "parked"), room))
               IN [r \in Requests |-> IF r \in up THEN "pending" ELSE f[r]]
After(s, how) == [r \in Requests |-> IF r \in Ending(s, how) THEN how ELSE st[r]]
Leave(S) == line' = Without(line, S) /\ order' = Without(order, S) /\ aged' = aged \ S
End(s, how) == LET f == After(s, how)
                   l == Without(line, Ending(s, how))
                   left == \E r \in Ending(s, how) : st[r] = "pending"
               IN /\ Leave(Ending(s, how))
                  /\ st' = IF left THEN Admit(f, l) ELSE f
                  /\ ends' = [r \in Requests |-> IF r \in Ending(s, how) THEN ends[r] + 1 ELSE ends[r]]
Told(s) == told' = [r \in Requests |-> IF r \in s THEN told[r] + 1 ELSE told[r]]
(* The first sleeper that enough waits for, where st will be f: as many rows as it wants, or all that may wait. *)
Enough(v, f) == \/ need[v] + (IF Bug = "a full batch wakes nobody" /\ need[v] > 1 THEN 1 ELSE 0) <= RowsThat(f, "pending")
                \/ Bug # "waits without room" /\ Count({r \in Requests : f[r] = "pending"}) >= MaxPending
Roused(f) == LET enough == {i \in DOMAIN idle : Enough(idle[i], f)}
             IN {idle[i] : i \in {k \in enough : \A j \in enough : k <= j}}
Wakes(f) == /\ idle' = Without(idle, Roused(f))
            /\ woken' = woken \union (IF Bug = "lost wake-up" THEN {} ELSE Roused(f))
            /\ UNCHANGED need

-------------------------------------------------------------------------------
(* Callers *)
Free == \A r \in Requests : st[r] # "direct"
MayDirect(r) == /\ Some("direct") /\ r \in Callers /\ state = "open" /\ Pending = <<>>
                /\ Free \/ Bug = "shared run"

(* An urgent request counts as one that came earlier, by less than the time after which others have aged. *)
Ahead(q) == q \in Urgent \/ (q \in aged /\ Bug # "no aging")
Place(r) == LET before == {i \in DOMAIN order : Ahead(order[i])}
                k == IF before = {} THEN 0 ELSE CHOOSE i \in before : \A j \in before : j <= i
            IN IF r \in Urgent /\ Bug # "no priority" THEN SubSeq(order, 1, k) \o <<r>> \o SubSeq(order, k + 1, Len(order))
               ELSE Append(order, r)
Accept(r, as) == st' = [st EXCEPT ![r] = as] /\ line' = Append(line, r) /\ order' = Place(r) /\ UNCHANGED aged
(* So much time passes that what came until now comes before all that comes later. *)
Age == /\ Some("age") /\ aged # Range(line) /\ aged' = Range(line)
       /\ UNCHANGED <<st, told, ends, line, order, solo, worker, sleep, others>>
Submit(r) ==
  /\ st[r] = "new" /\ ~MayDirect(r)
  /\ IF state # "open"
     THEN st' = [st EXCEPT ![r] = "refused"] /\ UNCHANGED <<told, ends, lines, sleep>>
     ELSE IF Len(Pending) < MaxPending \/ Bug = "no bound"
     THEN Accept(r, "pending") /\ UNCHANGED <<told, ends>> /\ Wakes(st')
     ELSE IF Overflow = "block"
     THEN Accept(r, "parked") /\ UNCHANGED <<told, ends, sleep>>
     ELSE IF Overflow = "reject"
     THEN st' = [st EXCEPT ![r] = "refused"] /\ UNCHANGED <<told, ends, lines, sleep>>
     ELSE LET old == Head(In(line, {"pending"}))   \* who waited longest, whatever its priority
          IN /\ st' = [st EXCEPT ![r] = "pending", ![old] = "dropped"]
             /\ line' = Append(Without(line, {old}), r)
             /\ order' = Without(Place(r), {old}) /\ aged' = aged \ {old}
             /\ ends' = [ends EXCEPT ![old] = @ + 1]
             /\ Told({old})
             /\ Wakes(st')
  /\ UNCHANGED <<solo, worker, others>>

Direct(r) == /\ st[r] = "new" /\ MayDirect(r)
             /\ st' = [st EXCEPT ![r] = "direct"]
             /\ UNCHANGED <<told, ends, lines, solo, worker, sleep, others>>
DirectEnds(r, how) == /\ st' = [st EXCEPT ![r] = how]
                      /\ ends' = [ends EXCEPT ![r] = @ + 1] /\ Told({r})
                      /\ UNCHANGED <<lines, solo, worker, sleep, others>>
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

RECURSIVE Flat(_)
Flat(batches) == IF batches = <<>> THEN <<>> ELSE Head(batches) \o Flat(Tail(batches))
InFlight(w) == hand[w] \o Flat(broken[w]) \o Flat(later[w])
InHand(r) == \E w \in Workers : r \in Range(InFlight(w)) \union Range(held[w]) \union Range(tell[w])
(* Whoever asked has seen the end; the name is used for another request. *)
Forget(r) == /\ st[r] \in Ends \union {"refused"} /\ ~InHand(r)
             /\ told[r] > 0 \/ st[r] = "refused" \/ (r \in Callers /\ st[r] = "cancelled")
             /\ st' = [st EXCEPT ![r] = "new"] /\ told' = [told EXCEPT ![r] = 0] /\ ends' = [ends EXCEPT ![r] = 0]
             /\ solo' = solo \ {r}
             /\ UNCHANGED <<lines, worker, sleep, others>>

-------------------------------------------------------------------------------
(* Workers, by their own threads or by the caller who was lent one *)
SetAll(w, p, h, n, x, t, k, l, b) ==
  /\ pc' = [pc EXCEPT ![w] = p] /\ hand' = [hand EXCEPT ![w] = h]
  /\ now' = [now EXCEPT ![w] = n] /\ rest' = [rest EXCEPT ![w] = x]
  /\ tell' = [tell EXCEPT ![w] = t] /\ held' = [held EXCEPT ![w] = k]
  /\ later' = [later EXCEPT ![w] = l] /\ broken' = [broken EXCEPT ![w] = b]
Set(w, p, h, n, x, t, k) == SetAll(w, p, h, n, x, t, k, <<>>, <<>>)

(* The next batch: the first in order, and others after it up to this worker's share of rows; a solo one runs alone.
   The first is taken however many rows it has, and the first of the others that does not fit ends the batch. *)
Limit == LET all == RowsThat(st, "pending") + RowsThat(st, "running")
             share == (all + Count(Workers) - 1) \div Count(Workers)
         IN IF Min(MaxBatch, share) > 1 THEN Min(MaxBatch, share) ELSE 1
Size(r) == IF r \in Wide /\ Bug # "rows are not counted" THEN WideRows ELSE 1
RECURSIVE Many(_, _, _)   \* how many of p go together, the first n of which do and leave room for so many rows
Many(p, n, room) == IF n < Len(p) /\ p[n + 1] \notin solo /\ Size(p[n + 1]) <= room
                    THEN Many(p, n + 1, room - Size(p[n + 1])) ELSE n
Formed(p, limit) == IF p[1] \in solo THEN <<p[1]>> ELSE SubSeq(p, 1, Many(p, 1, limit - Size(p[1])))
Batch == Formed(Pending, Limit)
Taken(b) == Admit([r \in Requests |-> IF r \in Range(b) THEN "running" ELSE st[r]], line)
Lead(w) == lent = w

(* Where a worker is with the batches F in flight, none of which raised, and with k taken and not launched. It takes
   more while there is room in flight, else it ends the oldest. A solo request is launched when nothing is in flight,
   and nothing after it: if it ends the worker again, nobody else is to suffer. *)
At(p, F, k) == [p |-> p, h |-> IF F = <<>> THEN <<>> ELSE Head(F), n |-> IF p = "run" THEN Head(F) ELSE <<>>,
                x |-> <<>>, t |-> <<>>, k |-> k, l |-> IF F = <<>> THEN <<>> ELSE Tail(F), b |-> <<>>]
Alone(k) == Head(k) \in solo /\ Bug # "solo in company"
Fly(F, k) == IF k = <<>> THEN At("take", F, <<>>)
             ELSE IF F # <<>> /\ (Alone(k) \/ Len(F) >= Depth) THEN At("run", F, k)
             ELSE IF Alone(k) \/ Len(F) + 1 >= Depth THEN At("run", Append(F, k), <<>>)
             ELSE At("take", Append(F, k), <<>>)
Move(w, to) == SetAll(w, to.p, to.h, to.n, to.x, to.t, to.k, to.l, to.b)

MayLook(w) == pc[w] \in {"take", "lead"} \/ (pc[w] \in {"idle", "owed"} /\ w \in woken)
Take(w) ==
  /\ MayLook(w)
  /\ need' = [need EXCEPT ![w] = 1]
  /\ LET loaded == hand[w] # <<>>   \* batches are in flight: its own, or one that a caller left
     IN IF Pending # <<>>
        THEN LET b == Batch
                 roused == Roused(Taken(b))
             IN /\ st' = Taken(b)
                /\ Move(w, Fly(IF loaded THEN <<hand[w]>> \o later[w] ELSE <<>>, b))
                /\ woken' = (woken \ {w}) \union roused
                /\ idle' = Without(idle, roused)
                /\ UNCHANGED <<lent, borrowing>>
        ELSE /\ UNCHANGED st
             /\ woken' = woken \ {w}
             /\ IF loaded /\ ~Lead(w)
                THEN Move(w, At("run", <<hand[w]>> \o later[w], <<>>)) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF Lead(w)
                THEN Set(w, "giveback", <<>>, <<>>, <<>>, <<>>, <<>>) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF state # "open" /\ ~(\E r \in Requests : st[r] \in {"pending", "parked"})
                THEN Set(w, "left", <<>>, <<>>, <<>>, <<>>, <<>>) /\ UNCHANGED <<idle, lent, borrowing>>
                ELSE IF borrowing /\ state = "open"
                THEN /\ Set(w, "lead", <<>>, <<>>, <<>>, <<>>, <<>>)
                     /\ lent' = w /\ borrowing' = FALSE /\ UNCHANGED idle
                ELSE /\ Set(w, "idle", <<>>, <<>>, <<>>, <<>>, <<>>)
                     /\ idle' = Append(idle, w) /\ UNCHANGED <<lent, borrowing>>
  /\ UNCHANGED <<told, ends, lines, solo, state, draining>>

(* max_wait: a worker with nothing in flight may wait for n rows, once, and for a time only. How many it expects is a
   guess by what was in flight lately; here it is any number of rows that a batch could have and that don't wait. *)
Gather(w) == /\ Some("gather") /\ MayLook(w) /\ hand[w] = <<>> /\ state = "open" /\ Pending # <<>>
             /\ need[w] = 1 \/ Bug = "waits again"
             /\ Len(Pending) < MaxPending \/ Bug = "waits without room"
             /\ \E n \in (RowsThat(st, "pending") + 1)..MaxBatch : need' = [need EXCEPT ![w] = n]
             /\ pc' = [pc EXCEPT ![w] = "idle"] /\ idle' = Append(idle, w) /\ woken' = woken \ {w}
             /\ UNCHANGED <<requests, hand, now, rest, later, broken, tell, held, others>>
(* Its time is up. If it was woken before it could say so, the wake-up is taken along: else it would come twice. *)
TimeUp(w) == /\ pc[w] = "idle" /\ need[w] > 1 /\ Bug # "no end of waiting"
             /\ pc' = [pc EXCEPT ![w] = "up"]
             /\ UNCHANGED <<requests, hand, now, rest, later, broken, tell, held, sleep, others>>
Stop(w) == /\ pc[w] = "up"
           /\ idle' = Without(idle, {w})
           /\ pc' = [pc EXCEPT ![w] = IF w \in Range(idle) THEN "take" ELSE "owed"]
           /\ UNCHANGED <<requests, hand, now, rest, later, broken, tell, held, woken, need, others>>

Halves(s) == LET half == Len(s) \div 2 IN <<SubSeq(s, 1, half), SubSeq(s, half + 1, Len(s))>>
Pieces(live) == LET halves == IF Bug = "bisect loses a neighbour" THEN <<Halves(live)[1]>> ELSE Halves(live) IN halves
RECURSIVE Next1(_, _)
Next1(f, stack) == IF stack = <<>> THEN <<>>
                   ELSE IF \E i \in DOMAIN Head(stack) : f[Head(stack)[i]] = "running" THEN stack ELSE Next1(f, Tail(stack))
(* Where a worker goes after a run of the batch h: to the next of its halves whose requests still run. Else that batch is
   over; if one raised, b, what was launched after it ends first, l, and then each is run again in halves, or has failed
   if it is of one request. Else it goes on with what is in flight. *)
RECURSIVE Onward(_, _, _, _, _)
Onward(w, h, stack, l, b) ==
  LET left == Next1(st, stack)
      at(p, h2, n, x, t, l2, b2) == [p |-> p, h |-> h2, n |-> n, x |-> x, t |-> t, k |-> held[w], l |-> l2, b |-> b2]
  IN IF left # <<>> THEN at("run", h, In(Head(left), {"running"}), Tail(left), <<>>, l, b)
     ELSE IF b # <<>> /\ l # <<>> THEN at("run", Head(l), Head(l), <<>>, <<>>, Tail(l), b)
     ELSE IF b # <<>> /\ Len(Head(b)) = 1 /\ st[Head(b)[1]] = "running"
     THEN at("tell", Head(b), <<>>, <<>>, Head(b), l, Tail(b))
     ELSE IF b # <<>>
     THEN Onward(w, Head(b), IF Len(Head(b)) = 1 THEN <<>> ELSE Pieces(In(Head(b), {"running"})), l, Tail(b))
     ELSE IF Lead(w) THEN At("giveback", <<>>, <<>>) ELSE Fly(l, held[w])
GoOn(w, to) == /\ Move(w, to)
               /\ IF to.p = "tell" THEN End(Range(to.t), "failed") ELSE UNCHANGED <<st, ends, lines>>

EndRun(w, s, how) ==   \* the run of s is over; if nobody is to be told, go on at once
  LET ended == SelectSeq(s, LAMBDA r : r \in Ending(Range(s), how))
  IN /\ IF ended = <<>> THEN GoOn(w, Onward(w, hand[w], rest[w], later[w], broken[w]))
        ELSE End(Range(s), how) /\ SetAll(w, "tell", hand[w], <<>>, rest[w], ended, held[w], later[w], broken[w])
     /\ UNCHANGED <<told, solo, sleep, others>>

Complete(w) == pc[w] = "run" /\ EndRun(w, now[w], "completed")

(* The model raised. One request alone has failed; of several, each half is run again. *)
Raise(w) ==
  /\ Some("raise") /\ pc[w] = "run"
  /\ IF now[w] = hand[w]
     THEN LET behind == IF Bug = "forgets what is in flight" THEN <<>> ELSE later[w]
          IN GoOn(w, Onward(w, <<>>, <<>>, behind, Append(broken[w], hand[w]))) /\ UNCHANGED <<told, solo, sleep, others>>
     ELSE IF Len(now[w]) = 1 THEN EndRun(w, now[w], "failed")
     ELSE /\ GoOn(w, Onward(w, hand[w], Pieces(now[w]) \o rest[w], later[w], broken[w]))
          /\ UNCHANGED <<told, solo, sleep, others>>

Tell(w) == /\ pc[w] = "tell"
           /\ Told(IF Bug = "nobody is told" THEN {} ELSE Range(tell[w]))
           /\ GoOn(w, Onward(w, hand[w], rest[w], later[w], broken[w]))
           /\ UNCHANGED <<solo, sleep, others>>

(* The model ended the worker's thread. A request that had its second chance fails; the others wait again. *)
Replaced(w) == Set(w, "take", <<>>, <<>>, <<>>, <<>>, <<>>)
Back(w) == In(InFlight(w), {"running"})
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
                /\ UNCHANGED <<st, ends, lines, solo, sleep, others>>
Retry(w) ==
  /\ pc[w] = "bury"
  /\ LET first == held[w] # <<>>   \* not launched yet, so not to blame
         again == IF first THEN In(held[w], {"running"}) ELSE IF Bug = "death loses requests" THEN <<>> ELSE Back(w)
         f == [r \in Requests |-> IF r \in Range(again) THEN "pending" ELSE st[r]]
     IN /\ st' = f
        /\ solo' = IF first THEN solo ELSE solo \union Range(again)
        /\ Wakes(f)
        /\ IF first /\ hand[w] # <<>> THEN Set(w, "bury", hand[w], <<>>, <<>>, <<>>, <<>>) ELSE Replaced(w)
  /\ UNCHANGED <<told, ends, lines, others>>

-------------------------------------------------------------------------------
(* A caller that leads: it borrows an idle worker's runner *)
Lend == /\ Some("lend") /\ lent = Nobody /\ ~borrowing /\ state = "open" /\ Pending = <<>>
        /\ IF idle # <<>>
           THEN LET w == idle[Len(idle)]
                IN /\ lent' = w /\ idle' = IF Bug = "lent twice" THEN idle ELSE SubSeq(idle, 1, Len(idle) - 1)
                   /\ pc' = [pc EXCEPT ![w] = "lead"]
                   /\ UNCHANGED borrowing
           ELSE borrowing' = TRUE /\ UNCHANGED <<lent, idle, pc>>
        /\ UNCHANGED <<requests, hand, now, rest, later, broken, tell, held, woken, need, state, draining>>
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
               /\ UNCHANGED <<requests, hand, now, rest, later, broken, tell, held, need, state, borrowing, draining>>

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
     IN /\ st' = f /\ Leave(waits)
        /\ ends' = [r \in Requests |-> IF r \in waits THEN ends[r] + 1 ELSE ends[r]]
        /\ Told(waits)
  /\ idle' = <<>> /\ woken' = woken \union (IF Bug = "close wakes nobody" THEN {} ELSE Range(idle))
  /\ UNCHANGED <<solo, worker, need, lent, borrowing, draining>>
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

Work(w) == Take(w) \/ Gather(w) \/ TimeUp(w) \/ Stop(w) \/ Complete(w) \/ Tell(w) \/ LastWords(w) \/ Retry(w) \/ GiveBack(w)
Next == \/ \E r \in Requests : \/ Submit(r) \/ Direct(r) \/ DirectOk(r) \/ DirectFails(r) \/ Cancel(r)
                               \/ Withdraw(r) \/ Expire(r) \/ Forget(r)
        \/ \E w \in Workers : \/ Take(w) \/ Complete(w) \/ Raise(w) \/ Tell(w) \/ Die(w) \/ LastWords(w) \/ Retry(w)
                              \/ Interrupt(w) \/ GiveBack(w) \/ Gather(w) \/ TimeUp(w) \/ Stop(w)
        \/ Age \/ Lend \/ LendTimeout \/ CloseSoftly \/ CloseAtOnce \/ Closed \/ Drain \/ Drained

-------------------------------------------------------------------------------
(* I2: a request ends at most once, and whoever asked is told once. Those that have not ended are in the line. *)
OnceEach == \A r \in Requests : ends[r] <= 1 /\ told[r] <= 1 /\ (st[r] \in Ends <=> ends[r] = 1)
InLine == /\ Range(line) = {r \in Requests : st[r] \in Alive} /\ Len(line) = Count(Range(line))
          /\ Range(order) = Range(line) /\ Len(order) = Len(line)
(* Nothing is lost: what runs is in exactly one worker's hands, and what has ended is told or about to be. *)
Hands(r) == {w \in Workers : r \in Range(InFlight(w))} \union {w \in Workers : r \in Range(held[w])}
NoneLost == \A r \in Requests : /\ st[r] = "running" => Count(Hands(r)) = 1
                                /\ st[r] \in Ends /\ told[r] = 0 => st[r] = "cancelled" \/ \E w \in Workers : r \in Range(tell[w])
(* No more than MaxPending wait; where workers die, what they had in hand comes on top of it. *)
Capacity == Count(Workers) * MaxBatch * (IF Some("lend") THEN 2 ELSE Depth)
Bounded == /\ Len(Pending) + Running <= MaxPending + Capacity
           /\ ~Some("die") => Len(Pending) <= MaxPending
RoomIsUsed == Parked # <<>> => Len(Pending) >= MaxPending
(* I1: a worker's runner has one user. One that sleeps is nobody's; one that is lent is not on the list. *)
OneUser == /\ \A w \in Workers : w \in Range(idle) => pc[w] \in {"idle", "up"} /\ w \notin woken /\ lent # w
           /\ \A w \in Workers : pc[w] \in {"idle", "up"} => (w \in Range(idle)) # (w \in woken) \/ Bug = "lost wake-up"
           /\ Len(idle) = Count(Range(idle))
           /\ Count({r \in Requests : st[r] = "direct"}) <= 1
(* While requests wait, somebody is awake to take them. *)
Awake == Pending # <<>> => \E w \in Workers : w \in woken \/ pc[w] \notin {"idle", "left"}
                                              \/ need[w] > 1   \* it waits for more, for a time
(* And more: while a worker sleeps that wants no more rows than wait, or no more may wait, somebody is about to look for
   work, or another waits for more for a time. So but for max_wait a free worker never waits while requests do; and a
   worker whose batch is full, or can't become fuller, does not wait for its time to be up. *)
Looks == \E v \in Workers : v \in woken \/ pc[v] \in {"take", "lead", "giveback", "up"}
Excused(w) == \/ need[w] > RowsThat(st, "pending") /\ Len(Pending) < MaxPending
              \/ need[w] = 1 /\ \E v \in Range(idle) : need[v] > 1
Prompt == idle = <<>> \/ Looks \/ Pending = <<>> \/ (\A w \in Range(idle) : Excused(w))
(* No batch has more rows than MaxBatch, but for a single request that has. *)
Fits(b) == Len(b) <= 1 \/ Rows(Range(b)) <= MaxBatch
Fit == \A w \in Workers : \/ pc[w] = "bury"
                          \/ /\ Fits(hand[w]) /\ Fits(held[w])
                             /\ \A i \in DOMAIN later[w] : Fits(later[w][i])
                             /\ \A i \in DOMAIN broken[w] : Fits(broken[w][i])
(* Priorities: of two requests that wait, the batch that is formed next does not take one and leave behind another that
   goes before it: one that has aged goes before one that has not; else an urgent one before one that is not; of the
   same kind the one that came earlier. And it leaves nothing behind that there is room for. *)
Arrived(r) == CHOOSE i \in DOMAIN line : line[i] = r
Before(q, r) == IF (q \in aged) # (r \in aged) THEN q \in aged
                ELSE IF (q \in Urgent) # (r \in Urgent) THEN q \in Urgent /\ q \notin aged
                ELSE Arrived(q) < Arrived(r)
Rightly(p, n, limit) == \* of those that wait, p, the first n are taken
  /\ n >= 1 /\ \A i \in 1..n, j \in (n + 1)..Len(p) : ~Before(p[j], p[i])
  /\ n = Len(p) \/ p[1] \in solo \/ p[n + 1] \in solo \/ Rows({p[i] : i \in 1..(n + 1)}) > limit
InTurn == Pending = <<>> \/ (Batch = First(Pending, Len(Batch)) /\ Rightly(Pending, Len(Batch), Limit))
(* At most Depth batches are in flight; who sleeps has none; a request on its second chance has nothing beside it. *)
Piped == \A w \in Workers :
           IF hand[w] = <<>> THEN later[w] = <<>> /\ broken[w] = <<>>
           ELSE /\ Len(later[w]) + Len(broken[w]) < Depth
                /\ w \notin Range(idle)
                /\ pc[w] = "run" /\ Len(InFlight(w)) > 1 => \A r \in Range(InFlight(w)) \cap solo : st[r] # "running"
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
            /\ WF_vars(Age) /\ WF_vars(LendTimeout) /\ WF_vars(Closed) /\ WF_vars(Drained)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness
EveryOneEnds == \A r \in Requests : st[r] \in Alive \union {"direct"} ~> ends[r] = 1
EveryOneIsTold == \A r \in Requests : st[r] \in Alive \union {"direct"} ~> told[r] = 1 \/ st[r] = "cancelled"
CloseEnds == state = "closing" ~> state = "closed"
===============================================================================
