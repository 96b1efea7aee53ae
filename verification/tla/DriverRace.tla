------------------------------ MODULE DriverRace ------------------------------
(* Who is inside the GPU driver: steelworks/devices/_driver_guard/guard.m over a driver that keeps its books without
   a lock, as Apple's is said to: an encoder (a context) owns a record out of a table of the process; to end it
   returns the record first and forgets its address afterwards.

   A call is two halves of work in the driver, "Begin" and "Finish", and between them the driver stands with half its
   books written. The guard takes one lock around each call. The driver sends itself further guarded messages (ending
   calls destroyImpl), so a call may take the lock more than once.

   A thread stands at one of these places:
     ""      outside
     "sent"  it has sent the message: it has the encoder in hand and may be kept waiting there for any time
     "in"    it may go on into the driver (guarded: it has the lock)
     "half"  inside the driver, between the halves
     "out"   it is through, and unlocks *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS Threads,   \* those that encode
          Handlers,  \* the driver's own, which run completion handlers
          Contexts,  \* encoders
          Kinds,     \* calls that threads make: of "make", "encode", "end", "commit", "wait"
          Shared,    \* whether a thread may use an encoder that another one made
          Bug        \* "none", or the name of a mistake; each must be found

VARIABLES pc, depth, hand, free, user, impl, maker, life, rest, owed
vars == <<pc, depth, hand, free, user, impl, maker, life, rest, owed>>

All == Threads \cup Handlers
Records == 1..Cardinality(Contexts)
None == 0
Nothing == [does |-> "", at |-> "", on |-> None]

Init == /\ pc = [t \in All |-> Nothing]
        /\ depth = [t \in All |-> 0]          \* how often it has taken the lock
        /\ hand = [t \in All |-> <<>>]        \* what it has read of the driver's books
        /\ free = [i \in Records |-> i]       \* the driver's free records, a stack
        /\ user = [r \in Records |-> None]    \* whose a record is
        /\ impl = [c \in Contexts |-> None]   \* an encoder's record
        /\ maker = [c \in Contexts |-> None]
        /\ life = [c \in Contexts |-> "none"] \* "none" (no memory), "making", "open", "ended"
        /\ rest = <<>>                        \* ended encoders whose memory the guard keeps, oldest first
        /\ owed = {}                          \* threads whose commits the GPU has not completed

At(t, does, at) == pc[t].does = does /\ pc[t].at = at
Goto(t, at) == pc' = [pc EXCEPT ![t].at = at]
On(t) == pc[t].on

-------------------------------------------------------------------------------
(* A message is sent. Who ends an encoder, or encodes, has it in hand from here on. *)
SendMake(t, c) == /\ "make" \in Kinds /\ life[c] = "none"
                  /\ life' = [life EXCEPT ![c] = "making"]
                  /\ maker' = [maker EXCEPT ![c] = t]
                  /\ pc' = [pc EXCEPT ![t] = [does |-> "make", at |-> "sent", on |-> c]]
                  /\ UNCHANGED <<depth, hand, free, user, impl, rest, owed>>
SendUse(t, does, c) == /\ does \in Kinds \cap {"encode", "end"} /\ life[c] = "open"
                       /\ Shared \/ maker[c] = t
                       /\ pc' = [pc EXCEPT ![t] = [does |-> does, at |-> "sent", on |-> c]]
                       /\ UNCHANGED <<depth, hand, free, user, impl, maker, life, rest, owed>>
SendOther(t, does) == /\ does \in Kinds \cap {"commit", "wait"}
                      /\ does = "commit" => t \notin owed
                      /\ pc' = [pc EXCEPT ![t] = [does |-> does, at |-> "sent", on |-> None]]
                      /\ UNCHANGED <<depth, hand, free, user, impl, maker, life, rest, owed>>
SendHandle(h, t) == /\ pc[h] = Nothing /\ t \in owed /\ \A o \in Handlers : ~(pc[o].does = "handle" /\ On(o) = t)
                    /\ pc' = [pc EXCEPT ![h] = [does |-> "handle", at |-> "sent", on |-> t]]
                    /\ UNCHANGED <<depth, hand, free, user, impl, maker, life, rest, owed>>
Send(t) == /\ pc[t] = Nothing
           /\ IF t \in Handlers THEN \E u \in Threads : SendHandle(t, u)
              ELSE \/ \E c \in Contexts : SendMake(t, c) \/ SendUse(t, "encode", c) \/ SendUse(t, "end", c)
                   \/ SendOther(t, "commit") \/ SendOther(t, "wait")

-------------------------------------------------------------------------------
(* The guard. A wait for the GPU is not guarded: the handler that it waits for needs the lock. *)
Guarded(does) ==
  CASE Bug = "no guard" -> FALSE
    [] Bug = "guard on ends only" -> does = "end"
    [] Bug = "guard on calls only" -> does = "encode"
    [] Bug = "makes unguarded" -> does \notin {"make", "wait"}
    [] Bug = "waits with the lock" -> TRUE
    [] OTHER -> does # "wait"
Nested(does) == IF does \in {"make", "end"} THEN 2 ELSE 1

(* A call on an encoder that has ended, other than from the driver itself, never gets to the driver. *)
Refusable(t) == /\ pc[t].at = "in" /\ pc[t].does \in {"encode", "end"} /\ depth[t] = 1
                /\ life[On(t)] = "ended" /\ Bug # "ended is not looked up"

Available(t) == \A u \in All \ {t} : \/ depth[u] = 0
                                     \/ Bug = "a lock per encoder" /\ On(u) # On(t)
Lock(t) == /\ Guarded(pc[t].does)
           /\ \/ pc[t].at = "sent"
              \/ pc[t].at = "in" /\ depth[t] < Nested(pc[t].does) /\ ~Refusable(t)
           /\ Available(t)
           /\ Bug = "not recursive" => depth[t] = 0
           /\ depth' = [depth EXCEPT ![t] = @ + 1]
           /\ Goto(t, "in")
           /\ UNCHANGED <<hand, free, user, impl, maker, life, rest, owed>>
Enter(t) == /\ pc[t].at = "sent" /\ ~Guarded(pc[t].does)
            /\ Goto(t, "in")
            /\ UNCHANGED <<depth, hand, free, user, impl, maker, life, rest, owed>>

Refuse(t) == /\ Refusable(t)
             /\ Goto(t, "out")
             /\ UNCHANGED <<depth, hand, free, user, impl, maker, life, rest, owed>>

Ready(t) == /\ pc[t].at = "in" /\ ~Refusable(t)
            /\ Guarded(pc[t].does) => depth[t] = Nested(pc[t].does)
Unlock(t) == /\ \/ pc[t].at = "out" /\ depth[t] > 0
                \/ Bug = "unlocks early" /\ pc[t].at = "half" /\ depth[t] > 0
             /\ depth' = [depth EXCEPT ![t] = @ - 1]
             /\ pc' = IF pc[t].at = "out" /\ depth[t] = 1 THEN [pc EXCEPT ![t] = Nothing] ELSE pc
             /\ UNCHANGED <<hand, free, user, impl, maker, life, rest, owed>>
Through(t) == IF depth[t] = 0 THEN pc' = [pc EXCEPT ![t] = Nothing] ELSE Goto(t, "out")

(* The guard keeps an ended encoder's memory, for a thread may still have it in hand; the oldest is let go of. That
   enough are kept for the slowest thread is assumed, and said in words in guard.m. *)
InHand(c) == \E t \in All : pc[t].does \in {"encode", "end"} /\ On(t) = c
Forget == /\ rest # <<>>
          /\ ~InHand(Head(rest)) \/ Bug = "ended are not kept"
          /\ life' = [life EXCEPT ![Head(rest)] = "none"]
          /\ rest' = Tail(rest)
          /\ UNCHANGED <<pc, depth, hand, free, user, impl, maker, owed>>

-------------------------------------------------------------------------------
(* The driver: the first half reads, the second half writes what follows from what was read. *)
BeginMake(t) == hand' = [hand EXCEPT ![t] = free] /\ UNCHANGED <<free, user>>
BeginEncode(t) == hand' = [hand EXCEPT ![t] = <<impl[On(t)]>>] /\ UNCHANGED <<free, user>>
BeginEnd(t) == /\ hand' = [hand EXCEPT ![t] = <<impl[On(t)]>>]
               /\ free' = <<impl[On(t)]>> \o free
               /\ user' = IF impl[On(t)] = None THEN user ELSE [user EXCEPT ![impl[On(t)]] = None]
Begin(t) == /\ Ready(t)
            /\ Goto(t, "half")
            /\ CASE pc[t].does = "make" -> BeginMake(t)
                 [] pc[t].does = "encode" -> BeginEncode(t)
                 [] pc[t].does = "end" -> BeginEnd(t)
                 [] OTHER -> UNCHANGED <<hand, free, user>>
            /\ UNCHANGED <<depth, impl, maker, life, rest, owed>>

FinishMake(t) == /\ hand[t] # <<>>
                 /\ free' = Tail(hand[t])
                 /\ user' = IF Head(hand[t]) = None THEN user ELSE [user EXCEPT ![Head(hand[t])] = On(t)]
                 /\ impl' = [impl EXCEPT ![On(t)] = Head(hand[t])]
                 /\ life' = [life EXCEPT ![On(t)] = "open"]
                 /\ UNCHANGED <<rest, owed>>
FinishEnd(t) == /\ impl' = [impl EXCEPT ![On(t)] = None]
                /\ life' = [life EXCEPT ![On(t)] = "ended"]
                /\ rest' = Append(rest, On(t))
                /\ UNCHANGED <<free, user, owed>>
Finish(t) == /\ pc[t].at = "half"
             /\ Through(t)
             /\ hand' = [hand EXCEPT ![t] = <<>>]
             /\ CASE pc[t].does = "make" -> FinishMake(t)
                  [] pc[t].does = "end" -> FinishEnd(t)
                  [] pc[t].does = "commit" -> owed' = owed \cup {t} /\ UNCHANGED <<free, user, impl, life, rest>>
                  [] pc[t].does = "handle" -> owed' = owed \ {On(t)} /\ UNCHANGED <<free, user, impl, life, rest>>
                  [] pc[t].does = "wait" -> t \notin owed /\ UNCHANGED <<free, user, impl, life, rest, owed>>
                  [] OTHER -> UNCHANGED <<free, user, impl, life, rest, owed>>
             /\ UNCHANGED <<depth, maker>>

Step(t) == Lock(t) \/ Enter(t) \/ Refuse(t) \/ Begin(t) \/ Finish(t) \/ Unlock(t)
Next == Forget \/ \E t \in All : Send(t) \/ Step(t)

-------------------------------------------------------------------------------
(* One thread at a time is inside the driver; waiting for the GPU is not being inside. *)
Inside == {t \in All : pc[t].at = "half" /\ pc[t].does # "wait"}
OneInside == Cardinality(Inside) <= 1

(* Nothing is used after it was destroyed: who is encoding writes into a record that belongs to its encoder, *)
NoUseAfterDestroy == \A t \in All : At(t, "encode", "half") => /\ hand[t][1] # None
                                                              /\ user[hand[t][1]] = On(t)
(* nothing is destroyed twice, *)
EndsOnce == \A t \in All : At(t, "end", "half") => hand[t][1] # None
NeverUsedAfterDestroy == []NoUseAfterDestroy
(* and no message is sent to memory that was freed. *)
Alive == \A t \in All : pc[t].does \in {"encode", "end"} => life[On(t)] # "none"

(* The driver's books are right whenever nobody is inside: each record is free once, or belongs to one encoder. *)
Books == Inside = {} => /\ \A r \in Records : Cardinality({i \in DOMAIN free : free[i] = r}) = IF user[r] = None THEN 1 ELSE 0
                        /\ \A c \in Contexts : life[c] = "open" => impl[c] # None /\ user[impl[c]] = c
(* The lock has one holder, who is between Lock and Unlock. *)
OneHolder == /\ Cardinality({t \in All : depth[t] > 0}) <= 1 \/ Bug = "a lock per encoder"
             /\ \A t \in All : depth[t] > 0 => pc[t].at \in {"in", "half", "out"}
(* An encoder is refused only once it has ended: that is what Refusable says. None is refused to a thread alone. *)
RefusedIfShared == ~Shared => \A t \in All : ~Refusable(t)

(* Nobody is stuck: whoever is in a call can go on, or waits for one that can. *)
Moves == (\E t \in All : pc[t] # Nothing) => \E t \in All : ENABLED Step(t) \/ (t \in Handlers /\ ENABLED Send(t))

(* Every call ends. The lock is fair to no one in particular; no symmetry here. *)
Fairness == \A t \in All : /\ SF_vars(Lock(t)) /\ WF_vars(Enter(t)) /\ WF_vars(Refuse(t))
                           /\ WF_vars(Begin(t)) /\ WF_vars(Finish(t)) /\ WF_vars(Unlock(t))
                           /\ (t \in Handlers => \A u \in Threads : SF_vars(SendHandle(t, u)))
Alike == Permutations(Threads) \cup Permutations(Contexts)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness
EveryCallEnds == \A t \in All : pc[t] # Nothing ~> pc[t] = Nothing
===============================================================================
