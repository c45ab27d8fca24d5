# Runs a compiler command and keeps what it says beside the object that -o names, as <object>.log.
object=
previous=
for argument in "$@"; do
    if [ "$previous" = -o ]; then object=$argument; fi
    previous=$argument
done
case $object in
    *.o) ;;
    *) exec "$@" ;;
esac
"$@" > "$object.log" 2>&1
status=$?
if [ $status -ne 0 ]; then cat "$object.log" >&2; fi
exit $status
