------------------------------ MODULE TraceDriver ------------------------------
(* Follows what was recorded of the guard and the stand-in of the driver through DriverRace. Each event is
   <<action, thread, call, encoder>>; those that are no Send name a thread, or an encoder that is forgotten. A trace
   that can't be followed to its end is a deadlock; the last state says which trace and which event it is. *)
EXTENDS DriverRace, RecordedDriver
VARIABLES trace, at

TraceInit == Init /\ trace \in DOMAIN Log /\ at = 1
Event == Log[trace][at]
Is(name) == at <= Len(Log[trace]) /\ Event[1] = name /\ at' = at + 1 /\ UNCHANGED trace
Sent(t, does, on) == /\ pc[t] = Nothing
                     /\ CASE does = "make" -> SendMake(t, on)
                          [] does \in {"encode", "end"} -> SendUse(t, does, on)
                          [] does = "handle" -> SendHandle(t, on)
                          [] OTHER -> SendOther(t, does)

TraceNext == \/ Is("Send") /\ Sent(Event[2], Event[3], Event[4])
             \/ Is("Lock") /\ Lock(Event[2])
             \/ Is("Enter") /\ Enter(Event[2])
             \/ Is("Refuse") /\ Refuse(Event[2])
             \/ Is("Begin") /\ Begin(Event[2])
             \/ Is("Finish") /\ Finish(Event[2])
             \/ Is("Unlock") /\ Unlock(Event[2])
             \/ Is("Forget") /\ rest # <<>> /\ Head(rest) = Event[4] /\ Forget
             \/ at = Len(Log[trace]) + 1 /\ UNCHANGED <<vars, trace, at>>
TraceSpec == TraceInit /\ [][TraceNext]_<<vars, trace, at>>
===============================================================================
